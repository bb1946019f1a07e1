"""The table of figures says what the kept files say."""

from lab import figures


def test_the_page_of_figures_is_what_the_kept_files_say() -> None:
    assert not figures.is_page_stale(), f"docs/figures.md is stale; run `{figures.KEEP_COMMAND}`"


def test_a_figure_falls_short_on_the_bad_side_of_must() -> None:
    assert figures.Figure("a", 6, "s", "lower", must=5).falls_short
    assert figures.Figure("a", 4, "s", "higher", must=5).falls_short
    assert not figures.Figure("a", 5, "s", "higher", must=5).falls_short
    assert not figures.Figure("a", 5, "s", "lower").falls_short

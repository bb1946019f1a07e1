"""The grammar of source URIs, in Python and in CEL."""

import pytest

from finetune_api.sources import Source, parse_source


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("pvc://models/SmolLM2-135M-Instruct", Source("pvc", "models", "SmolLM2-135M-Instruct")),
        ("pvc://models/a/b.c/d_e", Source("pvc", "models", "a/b.c/d_e")),
        ("configmap://tickets/train.jsonl", Source("configmap", "tickets", "train.jsonl")),
        ("hf://HuggingFaceTB/SmolLM2-135M", Source("hf", "HuggingFaceTB", "SmolLM2-135M")),
    ],
)
def test_a_well_formed_source_is_parsed(uri: str, expected: Source) -> None:
    assert parse_source(uri) == expected


@pytest.mark.parametrize(
    ("uri", "fragment"),
    [
        ("pvc://models/../etc/passwd", "cannot leave their volume"),
        ("pvc://models/a/..", "cannot leave their volume"),
        ("pvc://models//a", "malformed"),
        ("pvc://models", "malformed"),
        ("pvc:///a", "malformed"),
        ("pvc://models/a\n", "malformed"),
        ("/models/a", "not a supported source"),
        ("file:///models/a", "not a supported source"),
        ("https://example.org/model", "not a supported source"),
        ("hf://org/name/extra", "malformed"),
        ("pvc://models/" + "a" * 600, "malformed"),
    ],
)
def test_anything_else_is_refused_with_what_was_found(uri: str, fragment: str) -> None:
    with pytest.raises(ValueError, match=fragment):
        parse_source(uri)


def test_a_scheme_that_the_field_does_not_take_is_refused_with_those_it_takes() -> None:
    with pytest.raises(ValueError, match="use pvc://CLAIM/PATH or configmap://NAME/KEY"):
        parse_source("hf://a/b", ("pvc", "configmap"))

import json
from pathlib import Path

import pytest

from lab import figures, first_run
from lab.figures import Figure, record


def _names(path: Path) -> dict[str, float]:
    return {raw["name"]: raw["value"] for raw in json.loads(path.read_text())["figures"]}


def test_two_runs_may_record_into_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "FRESH", tmp_path)
    record("first-run", [Figure("try cold s", 150, "s", "lower")], 150, merge=True)
    record("first-run", [Figure("demo cold s", 600, "s", "lower")], 600, merge=True)
    path = record("first-run", [Figure("demo cold s", 500, "s", "lower")], 500, merge=True)
    assert _names(path) == {"try cold s": 150, "demo cold s": 500}


def test_a_run_by_itself_replaces_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "FRESH", tmp_path)
    record("demo", [Figure("a", 1, "s", "lower")], 1)
    assert _names(record("demo", [Figure("b", 2, "s", "lower")], 2)) == {"b": 2}


def test_the_figures_of_make_try_stand_beside_those_of_make_demo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "FRESH", tmp_path)
    record("first-run", [Figure("demo cold s", 600, "s", "lower")], 600, merge=True)
    first_run.write_figures({"model": 20}, 200, is_cold=True)
    first_run.write_figures({"model": 0}, 90, is_cold=False)
    names = _names(tmp_path / "first-run.json")
    assert names == {"demo cold s": 600, "try cold s": 200, "try warm s": 90, "try model s": 0}

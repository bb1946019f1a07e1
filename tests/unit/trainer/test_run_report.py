"""The page and the model card beside an adapter."""

import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence

import pytest
import yaml

from finetune_trainer.reporting.run_report import smooth
from lab.fixtures.training_runs import FinishedRun


def svgs(page: str) -> list[ET.Element]:
    return [ET.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]  # noqa: S314 - our own page


@pytest.mark.model
def test_the_page_shows_every_step_the_held_out_loss_and_the_lengths(finished: FinishedRun) -> None:
    page = (finished.adapter / "report.html").read_text()
    loss, lengths = svgs(page)
    assert len(loss.findall(".//circle")) == 40
    record = json.loads((finished.adapter / "run.json").read_text())
    words = [text.text or "" for text in loss.findall(".//text")]
    assert f"held-out {record['metrics']['eval_loss']:.3f}" in words
    assert {"1", "40"} <= set(words)
    heights = [float(dot.attrib["cy"]) for dot in loss.findall(".//circle")]
    assert heights[-1] > heights[0], "loss fell, so the last dot is lower on the page"
    counts = [int(text.text or "") for text in lengths.findall(".//text") if (text.text or "").isdigit()]
    assert sum(counts) == record["dataset"]["rows"]
    assert "<script" not in page
    assert "http" not in page


@pytest.mark.model
def test_the_model_card_names_its_base_for_hubs_and_people(finished: FinishedRun) -> None:
    card = (finished.adapter / "README.md").read_text()
    _, front, text = card.split("---\n", 2)
    assert yaml.safe_load(front)["library_name"] == "peft"
    assert yaml.safe_load(front)["base_model"] == finished.config.model.source
    assert "| training loss (mean of the last 10 steps) |" in text


def test_the_smoothed_curve_starts_where_the_loss_does() -> None:
    assert smooth([3.0]) == pytest.approx([3.0])
    assert smooth([3.0] * 50) == pytest.approx([3.0] * 50)
    falling = smooth([5.0 - 0.1 * i for i in range(40)])
    assert falling == sorted(falling, reverse=True)


@pytest.mark.model
@pytest.mark.parametrize("max_steps", [7, 300, 301, 5000])
def test_the_history_stays_short_and_is_that_of_a_run_without_interruption(max_steps: int) -> None:
    from finetune_trainer.loop.callbacks import CURVE_POINTS, RECENT_ENTRIES, thin_history

    def trained(history: list[dict[str, float]], steps: Sequence[int]) -> list[dict[str, float]]:
        for step in steps:
            history.append({"step": step, "loss": 1.0})
            thin_history(history, max_steps)
        return history

    whole = trained([], range(1, max_steps + 1))
    checkpoint = trained([], range(1, max_steps // 2))
    assert trained(json.loads(json.dumps(checkpoint)), range(max_steps // 2, max_steps + 1))[-1] == whole[-1]
    assert len(whole) <= CURVE_POINTS + RECENT_ENTRIES
    assert trained(list(checkpoint), range(max(1, max_steps // 2), max_steps + 1)) == whole

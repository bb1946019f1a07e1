"""Several sources as one dataset: limits, weights, order, digests, and the count of what is left out."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from finetune_api.reasons import Reason
from finetune_trainer.batches.batching import StepSampler
from finetune_trainer.config import SourceSettings
from finetune_trainer.data.report import remarks, render_report
from finetune_trainer.data.selection import Draw, limit_rows, weigh_rows
from finetune_trainer.dataset import Examples, prepare_dataset, read_examples
from finetune_trainer.errors import TrainingError
from finetune_trainer.model.base_model import read_config, read_tokenizer
from finetune_trainer.runtime.interruption import StopSignal
from finetune_trainer.tasks.finetuning_task import run_finetuning
from lab.fixtures.reporters import RecordingReporter
from lab.fixtures.tiny_model import as_jsonl, chat_rows
from lab.fixtures.training_runs import a_training_config


def rows(path: Path, name: str, count: int, **names: str) -> str:
    prompt, completion = names.get("prompt", "prompt"), names.get("completion", "completion")
    lines = [json.dumps({prompt: f"{name}{i}", completion: f"answer {name} {i}"}) for i in range(count)]
    file = path / f"{name}.jsonl"
    file.write_text("\n".join(lines))
    return str(file)


def read(dataset: dict[str, Any], seed: int = 0, settings: SourceSettings | None = None, **more: Any) -> Examples:
    config = a_training_config(
        Path("/m"), Path("/out"), dataset=dataset, hyperparameters={"seed": seed, "learningRate": 0.01}, **more
    )
    return read_examples(config, settings or SourceSettings())


def prompts(found: Examples) -> list[str]:
    return [str(example.prompt) for example in found.training]


DRAWN = Draw(7, shuffled=True)
FIRST = Draw(7, shuffled=False)


@pytest.mark.parametrize(
    ("weight", "expected"), [(1, 10), (2, 20), (0.5, 5), (2.5, 25), (0.25, 3), (0.04, 1), (1.05, 11), (1.04, 10)]
)
def test_a_weight_is_how_often_each_row_is_used(weight: float, expected: int) -> None:
    for draw in (DRAWN, FIRST):
        used = Counter(weigh_rows(range(10), weight, draw, "0"))
        assert used.total() == expected
        assert max(used.values()) - min(used.get(i, 0) for i in range(10)) <= 1
        assert weigh_rows(range(10), weight, draw, "0") == weigh_rows(range(10), weight, draw, "0")


def test_a_draw_depends_on_seed_and_purpose_and_keeps_the_order() -> None:
    drawn = limit_rows(range(1000), 10, DRAWN, "0")
    assert drawn == sorted(drawn) == [104, 383, 390, 468, 574, 753, 779, 845, 910, 983]
    assert drawn != limit_rows(range(1000), 10, Draw(8, shuffled=True), "0")
    assert drawn != limit_rows(range(1000), 10, DRAWN, "1")
    assert limit_rows(range(1000), 3, FIRST, "0") == [0, 1, 2]
    assert limit_rows(range(3), None, DRAWN, "0") == limit_rows(range(3), 9, DRAWN, "0") == [0, 1, 2]


def test_sources_are_put_together_in_their_order_with_their_weights_and_limits(tmp_path: Path) -> None:
    a, b = rows(tmp_path, "a", 4), rows(tmp_path, "b", 100)
    found = read({"sources": [{"path": a, "weight": 2}, {"path": b, "maxRows": 3}], "shuffle": False})
    assert prompts(found) == ["a0", "a1", "a2", "a3"] * 2 + ["b0", "b1", "b2"]
    assert [(use.rows, use.used, use.left_out) for use in found.sources] == [(4, 8, 0), (100, 3, 97)]
    assert found.left_out == 97
    assert found.training[-1].where == "sources[1] line 3"


def test_the_limit_of_the_dataset_comes_last(tmp_path: Path) -> None:
    dataset = {"sources": [{"path": rows(tmp_path, "a", 50)}, {"path": rows(tmp_path, "b", 50), "weight": 2}]}
    found = read({**dataset, "maxRows": 60}, seed=3)
    assert len(found.training) == 60 == sum(use.used for use in found.sources)
    assert found.left_out == 100 - len(set(prompts(found)))
    assert prompts(found) == prompts(read({**dataset, "maxRows": 60}, seed=3))
    assert prompts(found) != prompts(read({**dataset, "maxRows": 60}, seed=4))


def test_the_digest_is_that_of_the_rows_whatever_is_used_of_them(tmp_path: Path) -> None:
    a, b = rows(tmp_path, "a", 4), rows(tmp_path, "b", 4)
    both = read({"sources": [{"path": a}, {"path": b}]})
    assert both.digest == read({"sources": [{"path": a, "weight": 3, "maxRows": 2}, {"path": b}]}, seed=5).digest
    assert both.digest != read({"sources": [{"path": b}, {"path": a}]}).digest
    assert read({"path": a}).digest == read({"sources": [{"path": a}]}).digest == both.sources[0].digest


def test_a_limit_without_sources_is_a_draw_by_the_seed(tmp_path: Path) -> None:
    a = rows(tmp_path, "a", 20)
    found = read({"path": a, "maxRows": 5}, seed=1)
    assert (len(found.training), found.left_out, found.sources) == (5, 15, ())
    assert prompts(found) != ["a0", "a1", "a2", "a3", "a4"]
    assert prompts(read({"path": a, "maxRows": 5, "shuffle": False})) == ["a0", "a1", "a2", "a3", "a4"]


def test_a_copy_of_a_held_out_row_is_not_trained(tmp_path: Path) -> None:
    dataset = {"sources": [{"path": rows(tmp_path, "a", 10), "weight": 3}], "evaluationFraction": 0.2}
    found = read(dataset)
    assert len(found.evaluation) == 2
    assert len(found.training) == 24
    assert not {str(example.prompt) for example in found.evaluation} & set(prompts(found))


def test_each_source_has_its_own_columns(tmp_path: Path) -> None:
    a = rows(tmp_path, "a", 1)
    b = rows(tmp_path, "b", 1, prompt="question", completion="answer")
    columns = {"prompt": "question", "completion": "answer"}
    assert prompts(read({"sources": [{"path": a}, {"path": b, "columns": columns}]})) == ["a0", "b0"]


def test_problems_of_all_sources_are_reported_together(tmp_path: Path) -> None:
    (tmp_path / "text.jsonl").write_text('{"text": "x"}')
    a, text = rows(tmp_path, "a", 1), str(tmp_path / "text.jsonl")
    with pytest.raises(TrainingError, match=r"several formats: sources\[0\] prompt-completion, sources\[1\] text"):
        read({"sources": [{"path": a}, {"path": text}]})
    (tmp_path / "bad.jsonl").write_text('{"prompt": 1, "completion": "x"}')
    missing, bad = str(tmp_path / "none.jsonl"), str(tmp_path / "bad.jsonl")
    with pytest.raises(TrainingError) as caught:
        read({"sources": [{"path": missing}, {"path": a}, {"path": bad}]})
    assert caught.value.reason is Reason.DATASET_NOT_FOUND
    assert "sources[0]" in caught.value.message
    assert "sources[2] line 1: prompt is a number" in caught.value.message


def test_one_token_is_not_sent_to_two_hosts() -> None:
    sources = [{"path": "hf://org/rows"}, {"path": "https://example.com/rows.jsonl"}]
    with pytest.raises(TrainingError, match=r"one token, .* several hosts: example.com, the hub") as caught:
        read({"sources": sources}, settings=SourceSettings(token="hunter2"))
    assert caught.value.reason is Reason.SPEC_INVALID


def test_what_is_left_out_is_reported_and_copies_are_no_mistake(tiny_model: Path, tmp_path: Path) -> None:
    dataset = {
        "sources": [
            {"path": rows(tmp_path, "a", 6), "source": "pvc://rows/a.jsonl", "weight": 2},
            {"path": rows(tmp_path, "b", 6), "source": "pvc://rows/b.jsonl", "maxRows": 2},
        ]
    }
    config = a_training_config(tiny_model, tmp_path, dataset=dataset)
    tokenizer, model_config = read_tokenizer(tiny_model, "m"), read_config(tiny_model, "m")
    report = prepare_dataset(config, read_examples(config), tokenizer, model_config).report
    assert report.left_out == 4
    assert [(use.source, use.used, use.left_out) for use in report.sources] == [
        ("pvc://rows/a.jsonl", 12, 0),
        ("pvc://rows/b.jsonl", 2, 4),
    ]
    assert "pvc://rows/b.jsonl: 6 rows, 2 used, weight 1, 4 left out" in render_report(report)
    assert report.training.duplicate_rows == 0
    assert not [remark for remark in remarks(report) if "repeat" in remark]


def test_the_record_has_the_digest_and_the_rows_of_each_source(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(as_jsonl(chat_rows(4)))
    (tmp_path / "b.jsonl").write_text(as_jsonl(chat_rows(8)))
    sources = [{"path": str(tmp_path / "a.jsonl"), "weight": 2}, {"path": str(tmp_path / "b.jsonl"), "maxRows": 1}]
    config = a_training_config(
        tiny_model,
        tmp_path / "out",
        dataset={"sources": sources, "shuffle": False},
        hyperparameters={"maxSteps": 1, "batchSize": 4, "learningRate": 0.01},
    )
    outcome = run_finetuning(config, RecordingReporter(), StopSignal())
    record = json.loads((tmp_path / "out" / outcome.adapter.path / "run.json").read_text())["dataset"]
    assert (record["rows"], record["leftOutRows"]) == (9, 7)
    assert [(use["used"], use["leftOut"], use["digest"][:7]) for use in record["sources"]] == [
        (8, 0, "sha256:"),
        (1, 7, "sha256:"),
    ]


def test_without_shuffling_steps_take_the_rows_in_order() -> None:
    in_order = StepSampler([0] * 10, 4, seed=1, shuffle=False)
    in_order.set_epoch(3)
    assert list(in_order) == list(range(10))
    assert list(StepSampler([0] * 10, 4, seed=1)) != list(range(10))

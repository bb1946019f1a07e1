"""The figures about a dataset are exact, and the memory that its tokens take is bounded."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from finetune_trainer import data
from finetune_trainer.data.report import DatasetReport, remarks, render_report
from finetune_trainer.data.token_rows import IGNORED, TokenRowsBuilder, as_ids
from finetune_trainer.dataset import PreparedDataset, prepare_dataset, read_examples
from lab.fixtures.tiny_model import as_jsonl
from lab.fixtures.training_runs import FinishedRun, a_training_config

pytestmark = pytest.mark.model


class AModelConfig:
    """As much of a transformers configuration as preparing a dataset looks at."""

    def __init__(self, max_position_embeddings: int | None = 512) -> None:
        self.max_position_embeddings = max_position_embeddings

    def get_text_config(self) -> "AModelConfig":
        return self


def prepared(rows: list[dict[str, Any]], tokenizer: Any, **changes: Any) -> PreparedDataset:
    config = a_training_config(Path("/m"), Path("/out"), dataset={"inline": as_jsonl(rows)}, **changes)
    return prepare_dataset(config, read_examples(config), tokenizer, AModelConfig())


def pair(prompt: str, completion: str) -> dict[str, str]:
    return {"prompt": prompt, "completion": completion}


def test_the_report_counts_rows_tokens_and_what_is_learnt(plain_tokenizer: Any) -> None:
    report = prepared([pair("a", "b"), pair("a", "c"), {**pair("a", "b"), "id": "another"}], plain_tokenizer).report
    training = report.training
    assert (training.rows, training.tokens, training.loss_tokens, training.loss_share) == (3, 9, 6, 0.6667)
    assert (training.lengths.shortest, training.lengths.median, training.lengths.longest) == (3, 3, 3)
    assert [(b.up_to, b.rows) for b in training.lengths.histogram] == [(16, 3)]
    assert training.duplicate_rows == 1
    assert remarks(report) == [
        "not used of the training rows: id (1 row, line 3); remove them, or map them with dataset.columns if they are to be learnt",
        "1 of 3 training rows repeat an earlier row; remove them",
    ]


def test_cut_and_dropped_rows_are_counted_and_named_with_the_reason(plain_tokenizer: Any) -> None:
    rows = [pair("a", "b"), pair("a", "b " * 60), pair("a " * 60, "b")]
    report = prepared(rows, plain_tokenizer, hyperparameters={"maxLength": 32}).report
    assert (report.training.truncated.rows, report.training.truncated.places) == (2, ["line 2", "line 3"])
    assert (report.training.dropped.rows, report.training.dropped.places) == (1, ["line 3"])
    assert remarks(report) == [
        "2 training rows are longer than 32 tokens and lose their end (line 2, line 3); raise hyperparameters.maxLength or "
        "shorten them",
        "1 training rows have no token with loss within 32 tokens and are left out (line 3); raise "
        "hyperparameters.maxLength, or shorten what comes before the answer",
    ]


def test_held_out_rows_that_are_trained_on_are_found_however_their_json_is_written(plain_tokenizer: Any) -> None:
    evaluation = '{"completion":"b",  "prompt":"a"}\n{"prompt": "new", "completion": "row"}'
    report = prepared([pair("a", "b"), pair("c", "d")], plain_tokenizer, evaluation={"inline": evaluation}).report
    assert report.overlap == 1
    assert report.evaluation is not None
    assert report.evaluation.rows == 2
    assert "1 of 2 evaluation rows are training rows, too" in remarks(report)[0]


def test_a_clean_dataset_has_no_remarks_and_prints_its_histogram(tokenizer: Any) -> None:
    report = prepared([pair("a", "b" * n) for n in range(1, 60, 2)], tokenizer).report
    assert remarks(report) == []
    printed = render_report(report)
    assert "30 training rows, 0 evaluation rows, format prompt-completion, sha256:" in printed
    assert "up to     64:" in printed
    assert "#" * 40 in printed


def test_the_report_lies_beside_the_adapter(finished: FinishedRun) -> None:
    report = DatasetReport.model_validate_json((finished.adapter / "dataset-report.json").read_text())
    assert (report.training.rows, report.format, report.overlap) == (8, "messages", 0)
    assert report.evaluation is not None
    assert report.digest == json.loads((finished.adapter / "run.json").read_text())["dataset"]["digest"]


def test_rows_come_back_from_flat_memory_as_they_went_in() -> None:
    builder = TokenRowsBuilder()
    expected = [([5, 6, 7], [IGNORED, 6, 7]), ([8], [8]), ([9, 10], [IGNORED, 10])]
    for ids, labels in expected:
        builder.add(as_ids(ids), as_ids(labels) != IGNORED)
    rows = builder.build()
    assert [(list(row.input_ids), list(row.labels)) for row in rows] == expected
    assert [list(row.input_ids) for row in rows[-2:]] == [[8], [9, 10]]
    assert list(rows[-1].labels) == [IGNORED, 10]
    assert (list(rows.lengths), rows.tokens, rows.loss_tokens) == ([3, 1, 2], 6, 3)
    assert rows.loss_tokens == sum(row.loss_tokens for row in rows)
    with pytest.raises(IndexError):
        rows[3]


def test_a_stop_signal_is_heard_between_two_batches(tokenizer: Any) -> None:
    calls = []
    examples = [data.Example("row", text="a")] * 1500
    data.tokenize(examples, tokenizer, max_length=8, loss_on="all", check_stop=lambda: calls.append(1))
    assert len(calls) == 3


MEASURE = """
import sys
sys.path[:0] = sys.argv[1:]
from support.server.memory import peak_bytes
from lab.fixtures.tiny_model import make_tiny_tokenizer
from finetune_trainer import data

tokenizer = make_tiny_tokenizer()
words = "The quick brown fox jumps over the lazy dog, and the lazy dog does not mind at all. " * 6
def examples(count):
    return [data.Example(f"line {n}", messages=[
        {"role": "user", "content": f"{n} {words}"}, {"role": "assistant", "content": words}]) for n in range(count)]
def tokenize(rows):
    return data.tokenize(rows, tokenizer, max_length=4096, loss_on="completion")
tokenize(examples(600))
many = examples(int(2_000_000 / tokenize(examples(1)).tokens))
before = peak_bytes()
tokens = tokenize(many).tokens
print(tokens, peak_bytes() - before)
"""


def test_ten_million_tokens_take_less_than_240_megabytes() -> None:
    """Measured with two million: five bytes a token, buffers that grow, and one batch of the tokenizer's own lists."""
    tests = Path(__file__).parents[2]
    result = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tests), str(tests.parent)], capture_output=True, text=True, check=True
    )
    tokens, grown = map(int, result.stdout.split())
    assert tokens > 1_900_000
    assert 5 * tokens < grown < 24 * tokens, f"{grown / tokens:.1f} bytes a token"

"""From files to examples: every file format and compression gives the same rows, and every wrong row is named."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from finetune_api.reasons import Reason
from finetune_api.training import RowsConfig
from finetune_api.v1alpha1 import Columns
from finetune_trainer import data
from finetune_trainer.data.problems import Problems
from finetune_trainer.data.reading import read_rows
from finetune_trainer.errors import TrainingError
from lab.fixtures.datasets import prepare

GOOD = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}


# --- Reading


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ("", "Dataset is empty; expected at least one row"),
        ('{"text": "a"}\n{"text": ', "line 2 is not JSON (Expecting value at column 10)"),
        ('{"text": "a"}\n\n[1]', "line 3 is a list, expected a JSON object"),
        ([{"question": "a"}], "line 1 has the columns question; expected messages or prompt+chosen+rejected"),
        ([{"text": "a"}, {"txt": "b"}], "line 2: column text is missing, found txt"),
        ([{"text": "a"}, {"text": 5}], "line 2: text is a number, expected text"),
        ([{"text": "  "}], "line 1: text is empty, expected text"),
        ([{"prompt": "a", "completion": None}], "line 1: completion is null, expected text"),
        ([{"prompt": "a", "completion": ""}], "line 1: completion is empty, expected text"),
        ([{"messages": "Hi"}], "line 1: messages is text, expected a list of {role, content}"),
        ([{"messages": []}], "line 1: messages is an empty list, expected a list of {role, content}"),
        ([GOOD, {"messages": ["Hi"]}], "line 2: messages[0] is text, expected {role, content}"),
        ([{"messages": [{"content": "a"}]}], "messages[0] has no role, expected one of system, developer, user"),
        ([{"messages": [{"role": "bot", "content": "a"}]}], "messages[0].role is 'bot', expected one of system"),
        ([{"messages": [{"role": "user", "content": [1]}]}], "messages[0].content[0] is a number, expected {type"),
        (
            [{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}],
            "messages[0].content[0] is a part of type 'image_url', expected {type: text, text}",
        ),
        ([{"messages": [{"role": "assistant", "content": " "}]}], "messages[0].content is empty, expected text"),
        ([{"messages": [*GOOD["messages"], {"role": "tool"}]}], "messages[2].content is null, expected text"),
        ([{**GOOD, "tools": "search"}], "tools is text, expected a list of functions"),
        ([{"messages": [{"role": ["user"], "content": "a"}]}], "messages[0].role is a list, expected one of"),
        ('{"text": "\\ud83d"}', "text has an unpaired UTF-16 surrogate"),
        ('{"text": "a", "text": "b"}', "line 1 has the key text more than once in one object"),
        ('{"text": ' + "[" * 5000 + "]" * 5000 + "}", "line 1 is nested too deeply to be a row"),
        ('{"text": ' + "9" * 5000 + "}", "line 1 has a number of too many digits"),
        ([{"messages": [{"role": "user", "content": "a"}]}], "messages has no assistant message to learn from"),
        (
            [{"messages": [{"role": "assistant", "content": "a", "weight": 2}]}],
            "messages[0].weight is 2, expected 0 or 1",
        ),
        (
            [{"messages": [{"role": "assistant", "content": "a", "weight": True}]}],
            "messages[0].weight is True, expected 0 or 1",
        ),
    ],
)
def test_a_bad_row_is_named_with_what_was_found_and_what_is_expected(rows: str | list[Any], expected: str) -> None:
    with pytest.raises(TrainingError) as caught:
        prepare(rows)
    assert caught.value.reason is Reason.DATASET_INVALID
    assert not caught.value.retryable
    assert expected in caught.value.message


def test_many_bad_rows_are_counted_rather_than_listed() -> None:
    with pytest.raises(TrainingError) as caught:
        prepare([{"text": "a"}] + [{"text": n} for n in range(100)])
    assert "line 2: text is a number, expected text; line 3" in caught.value.message
    assert caught.value.message.endswith("and 95 more rows")


def test_error_messages_never_repeat_the_users_data() -> None:
    with pytest.raises(TrainingError) as caught:
        prepare([{"text": {"secret": "hunter2"}}])
    assert "hunter2" not in caught.value.message


def read(path: Path, source: str | None = None) -> list[dict[str, Any]]:
    problems = Problems("dataset")
    rows = [row.value for row in read_rows(RowsConfig(path=str(path), source=source), problems)]
    problems.raise_any()
    return rows


def prepare_file(path: Path) -> list[data.Example]:
    config = RowsConfig(path=str(path), source="pvc://data/rows")
    return data.read_examples(config, row_format="auto", columns=None, loss_on="completion")[0]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows as the path's suffixes ask."""
    suffixes = path.suffixes or [".jsonl"]
    if suffixes[0] == ".parquet":
        parquet.write_table(pa.Table.from_pylist(rows), path)
        return
    if suffixes[0] == ".csv":
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        content = text.getvalue()
    else:
        content = json.dumps(rows) if suffixes[0] == ".json" else "\r\n".join(json.dumps(row) for row in rows)
    codec = {".gz": "gzip", ".zst": "zstd"}.get(suffixes[-1])
    with pa.output_stream(str(path), compression=codec) as stream:
        stream.write(content.encode())


@pytest.mark.parametrize(
    "suffix",
    [
        "",
        ".jsonl",
        ".json",
        ".csv",
        ".parquet",
        *(f"{s}{c}" for s in (".jsonl", ".json", ".csv") for c in (".gz", ".zst")),
    ],
)
def test_every_file_format_gives_the_same_rows(tmp_path: Path, suffix: str) -> None:
    rows = [{"prompt": 'Grüße, "quoted"\nand\u2028broken', "completion": "B"}, {"prompt": "C", "completion": "D"}]
    path = tmp_path / f"rows{suffix}"
    write_rows(path, rows)
    assert read(path) == rows


def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b"\xef\xbb\xbftext\r\nhello\r\n")
    assert read(path) == [{"text": "hello"}]


def test_rows_are_read_as_they_are_asked_for(tmp_path: Path) -> None:
    """A million rows are never in memory as parsed JSON."""
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a"}\n' * 3 + "not JSON")
    problems = Problems("dataset")
    rows = read_rows(RowsConfig(path=str(path)), problems)
    assert next(rows).where == "line 1"
    problems.raise_any()
    assert len(list(rows)) == 2
    with pytest.raises(TrainingError, match="line 4 is not JSON"):
        problems.raise_any()


@pytest.mark.parametrize(
    ("name", "content", "reason", "expected"),
    [
        ("missing.jsonl", None, Reason.DATASET_NOT_FOUND, "pvc://data/rows does not exist"),
        ("rows.xlsx", b"x", Reason.DATASET_INVALID, "ends in .xlsx; expected one of .jsonl, .json, .csv, .parquet"),
        ("rows.parquet", b"x", Reason.DATASET_INVALID, "is not a complete Parquet file"),
        ("rows.jsonl", b'{"text": "caf\xe9"}\n', Reason.DATASET_INVALID, "line 1 is not UTF-8 text (byte 13)"),
        ("rows.csv", b"prompt,completion\na\n", Reason.DATASET_INVALID, "row 1 (line 2) does not have the header's 2"),
        ("rows.json", b'{"a": ', Reason.DATASET_INVALID, "is not JSON"),
        ("rows.json", b"3", Reason.DATASET_INVALID, "is a number, expected a list of JSON objects"),
        ("rows.jsonl", b"\n\n", Reason.DATASET_INVALID, "pvc://data/rows is empty"),
    ],
)
def test_a_file_that_cannot_be_used_says_why(
    tmp_path: Path, name: str, content: bytes | None, reason: Reason, expected: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(TrainingError) as caught:
        prepare_file(path)
    assert caught.value.reason is reason
    assert expected in caught.value.message


def test_columns_are_mapped_to_the_parts_of_the_format() -> None:
    examples = prepare([{"question": "a", "answer": "b"}], Columns(prompt="question", completion="answer"))
    assert (examples[0].prompt, examples[0].completion) == ("a", "b")


def test_the_held_out_rows_depend_on_the_seed_only() -> None:
    examples = prepare([{"text": f"row {n}"} for n in range(20)])
    training, held_out = data.split_rows(examples, 0.1, seed=1)
    assert (len(training), len(held_out)) == (18, 2)
    assert data.split_rows(examples, 0.1, seed=1) == (training, held_out)
    assert data.split_rows(examples, 0.1, seed=2)[1] != held_out


def test_holding_out_every_row_is_refused() -> None:
    with pytest.raises(TrainingError, match="none is left to train on"):
        data.split_rows(prepare([{"text": "a"}]), 0.5, seed=1)


# --- Formats


def test_auto_takes_the_first_format_whose_columns_the_first_row_has_and_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    row = {"prompt": "a", "chosen": "b", "rejected": "c", "id": 7}
    with caplog.at_level("INFO", logger="finetune_trainer"):
        _, row_format = data.read_examples(
            RowsConfig(inline=json.dumps(row)), row_format="auto", columns=None, loss_on="completion"
        )
    assert row_format == "preference"
    assert "dataset=dataset format=preference columns=chosen, id, prompt, rejected" in caplog.text
    assert "because='the first row has prompt+chosen+rejected'" in caplog.text


def test_auto_looks_at_the_method_before_the_columns(caplog: pytest.LogCaptureFixture) -> None:
    row = {"messages": [*QUESTION, *YES], "prompt": "a", "chosen": [*QUESTION, *YES], "rejected": [*QUESTION, *NO]}
    formats = []
    with caplog.at_level("INFO", logger="finetune_trainer"):
        for pairs in (False, True):
            _, row_format = data.read_examples(
                RowsConfig(inline=json.dumps(row)), row_format="auto", columns=None, loss_on="completion", pairs=pairs
            )
            formats.append(row_format)
    assert formats == ["messages", "preference"]
    assert "because='the first row has prompt+chosen+rejected, and method.dpo learns from pairs'" in caplog.text


QUESTION = [{"role": "user", "content": "a"}]
YES = [{"role": "assistant", "content": "Yes."}]
NO = [{"role": "assistant", "content": "No."}]


@pytest.mark.parametrize(
    ("prompt", "chosen", "rejected"),
    [("a", "Yes.", "No."), (QUESTION, YES, NO), (QUESTION, YES, [*YES, *QUESTION, *NO])],
)
def test_a_preference_pair_is_text_or_messages(prompt: Any, chosen: Any, rejected: Any) -> None:
    (example,) = prepare([{"prompt": prompt, "chosen": chosen, "rejected": rejected}])
    assert (example.prompt, example.chosen, example.rejected) == (prompt, chosen, rejected)


@pytest.mark.parametrize(
    ("prompt", "chosen", "rejected", "expected"),
    [
        ("a", "b", "b", "chosen and rejected are equal, expected two different answers"),
        ("a", "b", " ", "rejected is empty, expected text"),
        ("a", YES, "b", "rejected is text, expected a list of {role, content}"),
        (QUESTION, "b", "c", "chosen is text, expected a list of {role, content}"),
        (QUESTION, YES, QUESTION, "rejected ends with a message of role user, expected assistant"),
    ],
)
def test_a_pair_that_is_none_is_named(prompt: Any, chosen: Any, rejected: Any, expected: str) -> None:
    with pytest.raises(TrainingError) as caught:
        prepare([{"prompt": prompt, "chosen": chosen, "rejected": rejected}])
    assert expected in caught.value.message


def test_supervised_training_refuses_preference_pairs_and_says_how_to_learn_the_chosen_answers() -> None:
    with pytest.raises(TrainingError) as caught:
        data.require_format("preference", pairs=False)
    assert caught.value.reason is Reason.DATASET_INVALID
    assert "dataset.columns.completion to chosen" in caught.value.message
    pair = {"prompt": "a", "chosen": "b", "rejected": "c"}
    columns = Columns(completion="chosen")
    (example,), _ = data.read_examples(
        RowsConfig(inline=json.dumps(pair)), row_format="prompt-completion", columns=columns, loss_on="completion"
    )
    assert (example.prompt, example.completion) == ("a", "b")


def test_text_parts_of_a_message_become_one_text() -> None:
    parts = [{"type": "text", "text": "Good day"}, {"type": "text", "text": "It left."}]
    (example,) = prepare([{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": parts}]}])
    assert example.messages is not None
    assert example.messages[1]["content"] == "Good day\nIt left."

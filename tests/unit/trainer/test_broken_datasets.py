"""Datasets that people really bring, and what `validate` says of each: the reason, the place, what to do.

Each case is one file. All of them go through the whole preflight with a sound model, in one process and in bounded time.
"""

import datetime as dt
import gzip
import io
import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from finetune_api.reasons import Reason
from finetune_trainer.dataset import read_examples
from finetune_trainer.preflight import run_preflight
from lab.fixtures.training_runs import a_training_config

pytestmark = pytest.mark.model

PAIR = {"prompt": "Where is my order?", "completion": "On its way."}
GOOD = (json.dumps(PAIR) + "\n").encode()
SECONDS = 10
"""Any verdict must be there within this CPU time: what a busy machine adds says nothing of the file."""


def jsonl(*rows: Any) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def chat(*messages: Any, **more: Any) -> bytes:
    return jsonl({"messages": list(messages), **more})


def a_parquet(rows: list[dict[str, Any]]) -> bytes:
    buffer = io.BytesIO()
    schema = pa.schema([("prompt", pa.string()), ("completion", pa.string())]) if not rows else None
    parquet.write_table(pa.Table.from_pylist(rows, schema=schema), buffer)
    return buffer.getvalue()


NESTED_TIME = pa.struct([("a", pa.timestamp("us"))])


def a_column(kind: pa.DataType, value: Any) -> bytes:
    """A Parquet file of one row, whose text may be bytes that are none."""
    stored = pa.array([value]).view(kind) if isinstance(value, bytes) else pa.array([value], kind)
    buffer = io.BytesIO()
    parquet.write_table(pa.table({"text": stored}), buffer)
    return buffer.getvalue()


def a_parquet_bomb() -> bytes:
    """40 GiB in a few kilobytes: one text of 8 MiB, and 5000 rows that each refer to it."""
    text = pa.DictionaryArray.from_arrays(pa.array([0] * 5000, pa.int32()), pa.array(["a" * (8 << 20)]))
    buffer = io.BytesIO()
    parquet.write_table(pa.table({"text": text}), buffer)
    return buffer.getvalue()


def many_keys(count: int) -> bytes:
    """An object that repeats the first of its keys."""
    return b"{" + b",".join(b'"%d": 0' % n for n in [*range(count), 0]) + b"}\n"


def many_columns(count: int) -> bytes:
    """A header that repeats the first of its columns."""
    return b",".join(b"%d" % n for n in [*range(count), 0]) + b"\n"


def a_bomb() -> bytes:
    """80 MiB of rows, all alike."""
    return (b'{"text": "' + b"a" * 1012 + b'"}\n') * (80 << 10)


USER = {"role": "user", "content": "Hi"}
ASSISTANT = {"role": "assistant", "content": "Hello"}

FILES: list[tuple[str, bytes | Callable[[], bytes], str]] = [
    ("empty.jsonl", b"", "is empty; expected at least one row"),
    ("blank-lines.jsonl", b"\n \n\r\n", "is empty; expected at least one row"),
    ("no-rows.json", b"[]", "is empty; expected at least one row"),
    ("header-only.csv", b"prompt,completion\n", "is empty; expected at least one row"),
    ("no-rows.parquet", a_parquet([]), "is empty; expected at least one row"),
    # What is in the file is not what its name says.
    ("table.xlsx", b"PK\x03\x04", "ends in .xlsx; expected one of .jsonl, .json, .csv, .parquet"),
    ("rows.tsv", b"a\tb", "ends in .tsv; expected one of"),
    ("zip.jsonl", b"PK\x03\x04" + b"x" * 90, "is a ZIP archive or an Excel file"),
    ("pickle.json", b"\x80\x04\x95" + b"x" * 90, "is a Python pickle, which is never loaded"),
    ("page.jsonl", b"<!DOCTYPE html>\n<html>", "is a web page, not rows; download the file itself"),
    ("page-2.csv", b"\n  <HTML><body>404", "is a web page, not rows"),
    ("rows-xml.json", b"<?xml version='1.0'?>", "is XML; expected JSON Lines, JSON, CSV or Parquet"),
    ("paper.jsonl", b"%PDF-1.7", "is a PDF"),
    ("lfs.jsonl", b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
    ("parquet.jsonl", a_parquet([PAIR]), "is a Parquet file by its content; name it .parquet"),
    ("junk.parquet", b"junk" * 100, "is not a complete Parquet file"),
    ("cut.parquet", a_parquet([PAIR] * 50)[:-40], "is not a complete Parquet file"),
    ("empty.parquet", b"", "is not a complete Parquet file"),
    # Compression.
    ("cut.jsonl.gz", gzip.compress(GOOD * 500)[:-20], "is broken gzip (Truncated compressed stream); upload it again"),
    ("torn.jsonl.gz", gzip.compress(GOOD)[:-8] + b"\0" * 8, "is broken gzip"),
    ("plain.jsonl.gz", GOOD, "ends in .gz, but is not compressed with gzip"),
    ("other.csv.zst", gzip.compress(b"prompt,completion\na,b\n"), "ends in .zst, but is not compressed with zstd"),
    ("rows.jsonl.bz2", b"BZh91AY", "ends in .bz2; expected one of"),
    ("bzip.jsonl", b"BZh91AY", "is compressed with bzip2; use gzip or zstd"),
    ("xz.jsonl", b"\xfd7zXZ\0", "is compressed with xz; use gzip or zstd"),
    ("rows.parquet.gz", gzip.compress(a_parquet([PAIR])), "is Parquet inside .gz; Parquet compresses by itself"),
    ("bomb.jsonl.gz", lambda: gzip.compress(a_bomb(), 6), "unpacks to more than 200 times its size"),
    ("bomb.parquet", a_parquet_bomb, "unpacks to more than 200 times its size"),
    ("row.parquet", lambda: a_column(pa.string(), b"a" * (17 << 20)), "has rows of more than 16 MiB after row 0"),
    ("bomb.jsonl.zst", lambda: pa.Codec("zstd").compress(a_bomb(), asbytes=True), "unpacks to more than 200 times"),
    # Encoding.
    ("utf-16.jsonl", GOOD.decode().encode("utf-16"), "is UTF-16 text; save it as UTF-8"),
    ("utf-16-be.csv", b"\xfe\xff\0p\0r", "is UTF-16 text; save it as UTF-8"),
    ("utf-16-no-bom.jsonl", GOOD.decode().encode("utf-16-le"), "has NUL bytes; it is binary, or UTF-16 text"),
    ("latin-1.jsonl", GOOD + b'{"prompt": "caf\xe9", "completion": "b"}\n', "line 2 is not UTF-8 text (byte 15)"),
    ("latin-1.csv", b"prompt,completion\ncaf\xe9,b\n", "line 2 is not UTF-8 text (byte 3); convert it to UTF-8"),
    (
        "torn-write.jsonl",
        GOOD + b"\0" * 500,
        "has NUL bytes; it is binary, or UTF-16 text, or was not written to its end",
    ),
    ("late-nul.jsonl", GOOD * 200 + b"\0\0\n", "line 201 is not JSON (Expecting value at column 1)"),
    ("surrogate.jsonl", b'{"text": "\\ud83d"}\n', "text has an unpaired UTF-16 surrogate"),
    # JSON.
    ("cut.jsonl", GOOD + GOOD[:20], "line 2 is not JSON (Unterminated string starting at at column 12)"),
    ("python.jsonl", b"{'prompt': 'a'}\n", "line 1 is not JSON (Expecting property name enclosed in double quotes"),
    ("pretty.jsonl", json.dumps(PAIR, indent=2).encode(), "line 1 is not JSON"),
    ("comma.json", b'[{"text": "a"},]', "is not JSON (Expecting value at column 16)"),
    ("cut.json", b'[{"text": "a"}, {"te', "is not JSON (Unterminated string starting at at column"),
    ("number.json", b"3", "is a number, expected a list of JSON objects"),
    ("mixed.json", b'[{"text": "a"}, 5, "b"]', "row 2 is a number, expected a JSON object; row 3 is text"),
    ("list.jsonl", GOOD + b'["a", "b"]\n', "line 2 is a list, expected a JSON object"),
    ("deep.jsonl", b'{"text": ' + b"[" * 90_000 + b"\n", "line 1 is nested too deeply to be a row"),
    ("digits.jsonl", b'{"text": ' + b"9" * 90_000 + b"}\n", "line 1 has a number of too many digits"),
    ("twice.jsonl", b'{"prompt": "a", "prompt": "b", "completion": "c"}\n', "line 1 has the key prompt more than once"),
    ("twice-of-many.jsonl", lambda: many_keys(50_000), "line 1 has the key 0 more than once in one object"),
    ("one-line.jsonl", lambda: b"[" + GOOD.strip() * 350_000, "line 1 is longer than 16 MiB; expected one row a line"),
    # CSV.
    ("ragged.csv", b"prompt,completion\na,b\nc\nd,e,f\n", "row 2 (line 3) does not have the header's 2 columns; row 3"),
    ("twice.csv", b"prompt,prompt\na,b\n", "has the column prompt more than once"),
    ("twice-of-many.csv", lambda: many_columns(50_000), "has the column 0 more than once"),
    (
        "semicolons.csv",
        b"prompt;completion\na;b\n",
        "has a single column, prompt;completion; separate columns by commas",
    ),
    ("quotes.csv", b'prompt,completion\n"a,b\nc,d\n', "row 1 (after line 1) is not CSV (unexpected end of data)"),
    ("quotes-2.csv", b'prompt,completion\n"a" b,c\n', "is not CSV (',' expected after '\"'); check its quotes"),
    ("field.csv", lambda: b'prompt,completion\n"' + b"a,b\n" * 4_300_000, "is not CSV (field larger than field limit"),
    # Columns and types.
    (
        "columns.jsonl",
        jsonl({"question": "a", "answer": "b"}),
        "has the columns question, answer; expected messages or",
    ),
    ("two-formats.jsonl", GOOD + jsonl({"text": "a"}), "line 2: column prompt is missing, found text"),
    (
        "types.jsonl",
        jsonl({"text": "a"}, {"text": 5}, {"text": ["a"]}),
        "line 2: text is a number, expected text; line 3",
    ),
    ("null.jsonl", jsonl({**PAIR, "completion": None}), "line 1: completion is null, expected text"),
    ("blank.jsonl", jsonl({**PAIR, "completion": " \n"}), "line 1: completion is empty, expected text"),
    ("nan.jsonl", b'{"prompt": "a", "completion": NaN}\n', "line 1: completion is a number, expected text"),
    (
        "times.parquet",
        a_parquet([{"text": dt.datetime(2026, 1, 2, tzinfo=dt.UTC)}]),
        "row 1: text is a number, expected text",
    ),
    ("far.parquet", a_column(NESTED_TIME, {"a": 2**62}), "after row 0 has a value that Python cannot hold"),
    ("latin-1.parquet", a_column(pa.string(), b"caf\xe9"), "after row 0 has a value that Python cannot hold ('utf-8'"),
    ("null.parquet", a_parquet([PAIR, {**PAIR, "completion": None}]), "row 2: completion is null, expected text"),
    ("bytes.parquet", a_parquet([{"text": b"a"}]), "row 1: text is of type bytes, expected text"),
    # Conversations.
    ("no-messages.jsonl", chat(), "line 1: messages is an empty list, expected a list of {role, content}"),
    ("text.jsonl", jsonl({"messages": "Hi"}), "line 1: messages is text, expected a list"),
    ("strings.jsonl", chat("Hi", "Hello"), "line 1: messages[0] is text, expected {role, content}"),
    ("share-gpt.jsonl", chat({"from": "human", "value": "Hi"}), "messages has no assistant message to learn from"),
    (
        "speaker.jsonl",
        chat({"from": "narrator", "value": "Hi"}),
        "messages[0].from is 'narrator', expected one of human",
    ),
    ("role.jsonl", chat(USER, {"role": "bot", "content": "a"}), "messages[1].role is 'bot', expected one of system"),
    ("content.jsonl", chat(USER, {"role": "assistant"}), "messages[1].content is null, expected text"),
    ("silence.jsonl", chat(USER, {**ASSISTANT, "content": ""}), "messages[1].content is empty, expected text"),
    ("image.jsonl", chat({**USER, "content": [{"type": "image_url"}]}), "content[0] is a part of type 'image_url'"),
    ("weight.jsonl", chat(USER, {**ASSISTANT, "weight": 0.5}), "messages[1].weight is 0.5, expected 0 or 1"),
    ("weights.jsonl", chat(USER, {**ASSISTANT, "weight": 0}), "messages has no assistant message to learn from"),
    ("questions.jsonl", chat(USER), "messages has no assistant message to learn from; add one, or set"),
    ("tools.jsonl", chat(USER, ASSISTANT, tools={"name": "f"}), "tools is an object, expected a list of functions"),
    ("calls.jsonl", chat(USER, {**ASSISTANT, "tool_calls": "f"}), "messages[1].tool_calls is text, expected a list"),
    # Preference pairs.
    ("pairs.jsonl", jsonl({"prompt": "a", "chosen": "b", "rejected": "c"}), "holds preference pairs"),
    ("equal.jsonl", jsonl({"prompt": "a", "chosen": "b", "rejected": "b"}), "chosen and rejected are equal"),
    (
        "forms.jsonl",
        jsonl({"prompt": "a", "chosen": [ASSISTANT], "rejected": "b"}),
        "rejected is text, expected a list",
    ),
    # Right, but nothing can be learnt from it.
    (
        "long.jsonl",
        jsonl({**PAIR, "prompt": "word " * 900}),
        "All 1 rows of dataset lose every token with loss when truncated",
    ),
]


@pytest.mark.parametrize(("name", "content", "expected"), FILES, ids=[name for name, _, _ in FILES])
def test_a_broken_file_gets_its_own_message(
    tiny_model: Path, tmp_path: Path, name: str, content: bytes | Callable[[], bytes], expected: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content())
    started = time.process_time()
    found = run_preflight(a_training_config(tiny_model, tmp_path / "out", dataset={"path": str(path)}))
    assert time.process_time() - started < SECONDS
    assert [failure.reason for failure in found.failures] == [Reason.DATASET_INVALID]
    assert expected in found.failures[0].message
    assert len(found.failures[0].message) < 2500


def test_a_time_beside_the_text_is_not_in_its_way(tmp_path: Path) -> None:
    """Nanoseconds and the year 10000 are things that Python has not; nobody trains on them."""
    times = {
        "created": pa.array([1, None], pa.timestamp("ns", "UTC")),
        "expires": pa.array([2**62, None], pa.timestamp("us")),
        "day": pa.array([2**30, None], pa.date32()),
        "daytime": pa.array([1, None], pa.time64("ns")),
        "took": pa.array([1, None], pa.duration("ns")),
    }
    path = tmp_path / "rows.parquet"
    parquet.write_table(pa.table({**times, "text": ["a", "b"]}), path)
    config = a_training_config(Path("/m"), tmp_path, dataset={"path": str(path)})
    assert [example.text for example in read_examples(config).training] == ["a", "b"]


def a_folder(path: Path) -> None:
    path.mkdir()


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def a_dangling_link(path: Path) -> None:
    path.symlink_to(path.parent / "nowhere.jsonl")


def a_loop(path: Path) -> None:
    path.symlink_to(path)


def a_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda _path: None, "pvc://data/rows.jsonl does not exist; expected a file (.jsonl, .json, .csv, .parquet)"),
        (a_folder, "pvc://data/rows.jsonl is a folder; expected a file"),
        (a_pipe, "pvc://data/rows.jsonl is a pipe, socket or device; expected a regular file"),
        (a_dangling_link, "pvc://data/rows.jsonl does not exist"),
        (a_loop, "pvc://data/rows.jsonl cannot be read (OSError)"),
        (a_device, "pvc://data/rows.jsonl is a pipe, socket or device; expected a regular file"),
        (a_socket, "pvc://data/rows.jsonl is a pipe, socket or device; expected a regular file"),
    ],
)
def test_what_is_no_file_is_not_waited_for(
    tiny_model: Path, tmp_path: Path, make: Callable[[Path], None], expected: str
) -> None:
    path = tmp_path / "rows.jsonl"
    make(path)
    dataset = {"path": str(path), "source": "pvc://data/rows.jsonl"}
    (failure,) = run_preflight(a_training_config(tiny_model, tmp_path / "out", dataset=dataset)).failures
    assert failure.reason is Reason.DATASET_NOT_FOUND
    assert expected in failure.message


def test_a_file_that_is_too_large_is_not_read(tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.touch()
    os.truncate(path, 5 << 30)  # sparse: takes no space
    (failure,) = run_preflight(a_training_config(tiny_model, tmp_path / "out", dataset={"path": str(path)})).failures
    assert "has more than 4096 MiB of rows; use fewer rows" in failure.message


INLINE: list[tuple[dict[str, Any], str]] = [
    ({"columns": {"prompt": "question"}}, "has the columns prompt, completion; expected messages or"),
    ({"format": "messages"}, "line 1: column messages is missing, found prompt, completion"),
    ({"format": "text", "columns": {"text": "body"}}, "line 1: column body is missing"),
    ({"format": "preference"}, "line 1: column chosen is missing"),
    ({"evaluationFraction": 0.5}, "of which evaluation.fraction=0.5 holds out 1: none is left to train on"),
]


@pytest.mark.parametrize(("changes", "expected"), INLINE)
def test_settings_that_do_not_go_with_the_rows_are_refused(
    tiny_model: Path, tmp_path: Path, changes: dict[str, Any], expected: str
) -> None:
    dataset = {"inline": GOOD.decode(), **changes}
    (failure,) = run_preflight(a_training_config(tiny_model, tmp_path, dataset=dataset)).failures
    assert failure.reason is Reason.DATASET_INVALID
    assert expected in failure.message


@pytest.mark.parametrize(
    ("evaluation", "reason", "expected"),
    [
        ({"path": "/nowhere/rows.jsonl"}, Reason.DATASET_NOT_FOUND, "Evaluation /nowhere/rows.jsonl does not exist"),
        ({"inline": '{"text": "a"}'}, Reason.DATASET_INVALID, "Evaluation line 1: column prompt is missing"),
        ({"inline": "{"}, Reason.DATASET_INVALID, "Evaluation line 1 is not JSON"),
    ],
)
def test_held_out_rows_are_checked_alike(
    tiny_model: Path, tmp_path: Path, evaluation: dict[str, str], reason: Reason, expected: str
) -> None:
    config = a_training_config(tiny_model, tmp_path, dataset={"inline": GOOD.decode()}, evaluation=evaluation)
    (failure,) = run_preflight(config).failures
    assert failure.reason is reason
    assert expected in failure.message

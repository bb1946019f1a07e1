"""From a file or inline text to rows, one at a time: JSON Lines, JSON, CSV and Parquet."""

import contextlib
import csv
import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final

from finetune_api.artifacts import sha256_of
from finetune_api.reasons import Reason
from finetune_api.training import RowsConfig
from finetune_model.messages import kind
from finetune_trainer.data.files import (
    MAX_DATASET_BYTES,
    MAX_ROW_BYTES,
    MIB,
    check_file,
    check_unpacked,
    lines_of,
    open_text,
    suffix_of,
    too_large,
)
from finetune_trainer.data.problems import Problems, invalid, listed
from finetune_trainer.data.rows import Row
from finetune_trainer.errors import TrainingError, one_line

MAX_JSON_BYTES: Final = 256 * MIB
"""Most bytes of a JSON document, which is parsed as a whole and takes several times its size; JSON Lines has no such limit."""
PARQUET_BATCH_ROWS: Final = 16
"""Rows that are unpacked at a time: a file can repeat one large value a million times at no cost, and each may be as large as
a row may be."""


def read_rows(config: RowsConfig, problems: Problems, files: Sequence[Path] = ()) -> Iterator[Row]:
    """Yield the rows of inline text or of files as they are parsed; downloaded `files` replace `path`.

    A row that cannot be parsed is added to `problems` and left out. Raises TrainingError (DatasetNotFound, DatasetInvalid)
    if a whole file cannot be used.
    """
    shown = label_of(config, problems.name)
    if config.inline is not None:
        yield from _read_json_lines(io.BytesIO(_encoded(config.inline)), problems, shown)
        return
    labeled = _labeled(config, files, shown)
    for path, label in labeled:
        for row in _read_file(path, problems, label):
            # Places of several files would be ambiguous.
            yield row if len(labeled) == 1 else Row(f"{path.name} {row.where}", row.value)


def _read_file(path: Path, problems: Problems, shown: str) -> Iterator[Row]:
    check_file(path, shown)
    suffix = suffix_of(path, shown)
    with _readable(shown):
        if suffix == ".parquet":
            yield from _read_parquet(path, shown)
        else:
            with open_text(path, shown) as stream:
                yield from _TEXT_READERS[suffix](stream, problems, shown)


def _labeled(config: RowsConfig, files: Sequence[Path], shown: str) -> list[tuple[Path, str]]:
    """Return the files of rows that are not inline, each with its name in messages."""
    files = files or [Path(str(config.path))]
    return [(path, shown if len(files) == 1 else f"{shown} {path.name}") for path in files]


@contextlib.contextmanager
def _readable(shown: str) -> Iterator[None]:
    try:
        yield
    except PermissionError:
        raise TrainingError(
            Reason.DATASET_NOT_FOUND, f"{shown} cannot be read by uid of the trainer; make it world-readable"
        ) from None


def label_of(config: RowsConfig, name: str) -> str:
    """Return the name of these rows in messages, with their source unless they are inline."""
    return f"{name} {config.source or config.path}" if config.inline is None else name


def digest_rows(config: RowsConfig, files: Sequence[Path] = (), name: str = "dataset") -> str:
    """Return the sha256 of the inline text, of the file's bytes, or of the digests of several files.

    Raises TrainingError (DatasetNotFound, DatasetInvalid) if a file cannot be read.
    """
    if config.inline is not None:
        return f"sha256:{hashlib.sha256(_encoded(config.inline)).hexdigest()}"
    digests = []
    for path, shown in _labeled(config, files, label_of(config, name)):
        check_file(path, shown)
        with _readable(shown):
            digests.append(sha256_of(path))
    return f"sha256:{digests[0] if len(digests) == 1 else hashlib.sha256(' '.join(digests).encode()).hexdigest()}"


def _encoded(inline: str) -> bytes:
    # A str may hold an unpaired surrogate; parsing the bytes then reports that they are not UTF-8.
    return inline.encode(errors="surrogatepass")


# --- JSON


def _read_json_lines(stream: BinaryIO, problems: Problems, shown: str) -> Iterator[Row]:
    first = None
    for number, line in lines_of(stream, shown):
        if not line.strip():
            continue
        first = first or number
        try:
            value = _parse_json(line)
        except _NotJsonError as error:
            if number == first and (problem := _spread_over_lines(line)):
                raise invalid(f"{shown} line {number} {error}: {problem}") from None
            problems.add(f"line {number} {_ends_with_comma(line) or error}")
            continue
        if isinstance(value, dict):
            yield Row(f"line {number}", value)
        elif number == first and isinstance(value, list) and value and isinstance(value[0], dict):
            raise invalid(
                f"{shown} line {number} is a list of objects; name the file .json, or write one object per line"
            )
        else:
            problems.add(f"line {number} is {kind(value)}, expected a JSON object")


def _spread_over_lines(line: bytes) -> str | None:
    """Say what to do with a document whose first line shows that it is not JSON Lines; None for any other line."""
    start = line.strip()
    if start.startswith(b"["):
        return "the file is one JSON list; name it .json, or write one object per line without brackets and commas"
    if start == b"{":
        return "an object begins here and goes on in the next line; write each row on one line"
    return None


def _ends_with_comma(line: bytes) -> str | None:
    """Describe a line that is right except for a comma behind it, as between the elements of a list."""
    text = line.strip()
    if not text.endswith(b"},"):
        return None
    try:
        _parse_json(text[:-1])
    except _NotJsonError:
        return None
    return "ends with a comma; remove it: JSON Lines has one object per line and nothing between them"


def _read_json(stream: BinaryIO, problems: Problems, shown: str) -> Iterator[Row]:
    raw = stream.read(MAX_JSON_BYTES + 1)
    if len(raw) > MAX_JSON_BYTES:
        raise invalid(f"{shown} is a JSON document of more than {MAX_JSON_BYTES // MIB} MiB; use JSON Lines (.jsonl)")
    try:
        document = _parse_json(raw.removeprefix(b"\xef\xbb\xbf"))
    except _NotJsonError as error:
        if error.extra_data:  # several documents: JSON Lines under another name
            yield from _read_json_lines(io.BytesIO(raw), problems, shown)
            return
        raise invalid(f"{shown} {error}") from None
    if isinstance(document, dict):
        yield Row("row 1", document)
        return
    if not isinstance(document, list):
        raise invalid(f"{shown} is {kind(document)}, expected a list of JSON objects")
    for number, value in enumerate(document, start=1):
        if isinstance(value, dict):
            yield Row(f"row {number}", value)
        else:
            problems.add(f"row {number} is {kind(value)}, expected a JSON object")


class _NotJsonError(Exception):
    """Describe why a text is not JSON, as the rest of a sentence about it."""

    def __init__(self, problem: str, *, extra_data: bool = False) -> None:
        super().__init__(problem)
        self.extra_data = extra_data


def _parse_json(raw: bytes) -> Any:
    try:
        return json.loads(raw.decode(), object_pairs_hook=_object)
    except UnicodeDecodeError as error:
        raise _NotJsonError(f"is not UTF-8 text (byte {error.start}); convert it to UTF-8") from None
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}" if error.lineno > 1 else f"column {error.colno}"
        raise _NotJsonError(f"is not JSON ({error.msg} at {place})", extra_data=error.msg == "Extra data") from None
    except RecursionError:
        raise _NotJsonError("is nested too deeply to be a row") from None
    except ValueError:  # Python's limit on the digits of an integer
        raise _NotJsonError("has a number of too many digits") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse a key that occurs twice: Python would silently keep its last value and train on half of a row."""
    value = dict(pairs)
    if len(value) != len(pairs):
        raise _NotJsonError(f"has the key {_twice([key for key, _ in pairs])} more than once in one object")
    return value


def _twice(names: list[str]) -> str:
    return listed(name for name, count in Counter(names).items() if count > 1)


# --- CSV


def _read_csv(stream: BinaryIO, problems: Problems, shown: str) -> Iterator[Row]:
    csv.field_size_limit(MAX_ROW_BYTES)
    reader = csv.DictReader(_decoded(stream, shown), strict=True)
    number = 0
    try:
        _check_header(list(reader.fieldnames or ()), shown)
        for number, value in enumerate(reader, start=1):
            if None in value or None in value.values():
                columns = len(reader.fieldnames or ())
                problems.add(f"row {number} (line {reader.line_num}) does not have the header's {columns} columns")
            else:
                yield Row(f"row {number}", dict(value))
    except csv.Error as error:
        raise invalid(
            f"{shown} row {number + 1} (after line {reader.line_num}) is not CSV ({error}); check its quotes"
        ) from None


def _decoded(stream: BinaryIO, shown: str) -> Iterator[str]:
    for number, line in lines_of(stream, shown):
        try:
            yield line.decode()
        except UnicodeDecodeError as error:
            raise invalid(
                f"{shown} line {number} is not UTF-8 text (byte {error.start}); convert it to UTF-8"
            ) from None


def _check_header(header: list[str], shown: str) -> None:
    _check_columns(header, shown)
    if len(header) == 1 and (";" in header[0] or "\t" in header[0]):
        raise invalid(f"{shown} has a single column, {listed(header)}; separate columns by commas")


def _check_columns(names: list[str], shown: str) -> None:
    if len(set(names)) < len(names):
        raise invalid(f"{shown} has the column {_twice(names)} more than once; rename one of them")


_TEXT_READERS: Final = {".jsonl": _read_json_lines, ".json": _read_json, ".csv": _read_csv}


# --- Parquet


def _read_parquet(path: Path, shown: str) -> Iterator[Row]:
    import pyarrow as pa
    from pyarrow import parquet

    number = unpacked = 0
    try:
        file = parquet.ParquetFile(path)
        groups = [file.metadata.row_group(i).total_byte_size for i in range(file.metadata.num_row_groups)]
        if sum(groups) > MAX_DATASET_BYTES:
            raise too_large(shown)
        for batch in file.iter_batches(batch_size=PARQUET_BATCH_ROWS):
            unpacked += batch.nbytes
            check_unpacked(unpacked, path.stat().st_size, shown)
            if batch.nbytes > MAX_ROW_BYTES * batch.num_rows:
                raise invalid(
                    f"{shown} has rows of more than {MAX_ROW_BYTES // MIB} MiB after row {number}; split them"
                )
            for value in _without_times(batch).to_pylist(maps_as_pydicts="strict"):
                number += 1
                yield Row(f"row {number}", {column: _without_null_keys(nested) for column, nested in value.items()})
    except (pa.ArrowException, OSError) as error:
        # Arrow's own errors have no errno; an errno means that the volume failed.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        where = f"after row {number} " if number else ""
        raise invalid(f"{shown} is not a complete Parquet file {where}({one_line(error)}); write it again") from None
    except (ValueError, OverflowError, KeyError) as error:
        # A single value failed: text that is not UTF-8, a time inside a list or object, or a map with a key twice.
        raise invalid(
            f"{shown} after row {number} has a value that Python cannot hold ({one_line(error)}); write it as text"
        ) from None


def _without_null_keys(value: Any) -> Any:
    """Return a nested value without keys that are null.

    A column has one type for all rows, so each object in it has the keys of all objects: a call with the arguments
    `{"city": "Paris"}` comes back with the arguments of every other function, all of them null.
    """
    if isinstance(value, dict):
        return {key: _without_null_keys(inner) for key, inner in value.items() if inner is not None}
    return [_without_null_keys(inner) for inner in value] if isinstance(value, list) else value


def _without_times(batch: Any) -> Any:
    """Return the table with times and durations as the numbers that they are stored as.

    Python has no nanoseconds and no year 10000. Nobody trains on a time, so such a column beside the text must not fail.
    """
    import pyarrow as pa

    for place, column in enumerate(batch.schema):
        if pa.types.is_temporal(column.type) and not pa.types.is_interval(column.type):
            stored = pa.int32() if column.type.bit_width == 32 else pa.int64()
            batch = batch.set_column(place, column.name, batch.column(place).view(stored))
    return batch

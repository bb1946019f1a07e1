"""From rows in a file to token ids and labels, in four steps that each return a value.

`read_rows` parses a file or inline text, `detect_format` decides what a row is, `check_rows` turns rows into examples or
says which row is wrong, `tokenize` renders examples with the model's chat template and marks which tokens carry loss. The
first three need neither torch nor a model, so a bad dataset is refused within a second.
"""

import csv
import hashlib
import io
import json
import logging
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from finetune_api.artifacts import sha256_of
from finetune_api.reasons import Reason
from finetune_api.training import RowsConfig
from finetune_api.v1alpha1.finetune_job import Columns
from finetune_trainer.errors import TrainingError

logger = logging.getLogger(__name__)

Format = Literal["messages", "prompt-completion", "text"]
PARTS: Final[dict[Format, tuple[str, ...]]] = {
    "messages": ("messages",),
    "prompt-completion": ("prompt", "completion"),
    "text": ("text",),
}
"""Parts that a row of each format must have, in the order in which formats are detected."""
SUFFIXES: Final = (".jsonl", ".json", ".csv", ".parquet")
ROLES: Final = ("system", "developer", "user", "assistant", "tool")
IGNORED: Final = -100
"""Label of a token without loss; torch's cross entropy leaves it out."""
SHOWN_PROBLEMS: Final = 5
"""Row errors that are spelled out; the rest is counted. A termination message has 4096 bytes."""


@dataclass(frozen=True)
class Row:
    """A parsed row and the words by which its author finds it."""

    where: str
    """For example `line 3` or `row 3`, counted from 1."""
    value: dict[str, Any]


@dataclass(frozen=True)
class Example:
    """A row whose parts are known to be right; exactly one of the three forms is set."""

    where: str
    messages: list[dict[str, Any]] | None = None
    tools: list[Any] | None = None
    prompt: str | None = None
    completion: str | None = None
    text: str | None = None


@dataclass(frozen=True)
class TokenRow:
    """One training row."""

    input_ids: list[int]
    labels: list[int]
    """The token ids that carry loss, `IGNORED` elsewhere."""

    @property
    def loss_tokens(self) -> int:
        """Tokens that are predicted and carry loss; the first token of a row is never predicted."""
        return sum(label != IGNORED for label in self.labels[1:])


@dataclass(frozen=True)
class Tokenized:
    """Rows ready for training, and what was lost on the way."""

    rows: list[TokenRow]
    truncated: int
    """Rows that were longer than maxLength."""
    dropped: int
    """Rows that had no token with loss left after truncation."""

    @property
    def tokens(self) -> int:
        """Tokens of all rows."""
        return sum(len(row.input_ids) for row in self.rows)

    @property
    def loss_tokens(self) -> int:
        """Tokens with loss of all rows."""
        return sum(row.loss_tokens for row in self.rows)


# --- Reading


def read_rows(config: RowsConfig, *, name: str = "dataset") -> list[Row]:
    """All rows of inline text or of a file. Raises TrainingError (DatasetNotFound, DatasetInvalid)."""
    if config.inline is not None:
        rows = _read_json_lines(config.inline.splitlines(), name)
    else:
        rows = _read_file(Path(str(config.path)), config.source, name)
    if not rows:
        raise _invalid(f"{_label(config, name)} is empty; expected at least one row")
    return rows


def digest_rows(config: RowsConfig) -> str:
    """sha256 of the file's bytes or of the inline text."""
    if config.inline is not None:
        return f"sha256:{hashlib.sha256(config.inline.encode()).hexdigest()}"
    return f"sha256:{sha256_of(Path(str(config.path)))}"


def _read_file(path: Path, source: str | None, name: str) -> list[Row]:
    shown = source or str(path)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise TrainingError(Reason.DATASET_NOT_FOUND, f"{name} {shown} {what}; expected a file ({', '.join(SUFFIXES)})")
    readers = {".jsonl": _read_jsonl_file, ".json": _read_json_file, ".csv": _read_csv_file, ".parquet": _read_parquet}
    # A ConfigMap key needs no suffix; what it holds is JSON Lines.
    reader = readers.get(path.suffix.lower()) if path.suffix else _read_jsonl_file
    if reader is None:
        raise _invalid(f"{name} {shown} ends in {path.suffix}; expected one of {', '.join(SUFFIXES)}")
    try:
        return reader(path, name)
    except PermissionError:
        raise TrainingError(
            Reason.DATASET_NOT_FOUND, f"{name} {shown} cannot be read by uid of the trainer; make it world-readable"
        ) from None
    except UnicodeDecodeError as error:
        raise _invalid(f"{name} {shown} is not UTF-8 text (byte {error.start}); convert it to UTF-8") from None


def _read_jsonl_file(path: Path, name: str) -> list[Row]:
    with path.open(encoding="utf-8-sig") as file:
        return _read_json_lines(file, name)


def _read_json_lines(lines: Iterable[str], name: str) -> list[Row]:
    rows, problems = [], []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            problems.append(f"line {number} is not JSON ({error.msg} at column {error.colno})")
            continue
        if isinstance(value, dict):
            rows.append(Row(f"line {number}", value))
        else:
            problems.append(f"line {number} is {_kind(value)}, expected a JSON object")
    _raise_problems(problems, name)
    return rows


def _read_json_file(path: Path, name: str) -> list[Row]:
    text = path.read_text(encoding="utf-8-sig")
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":  # several documents: JSON Lines under another name
            return _read_json_lines(text.splitlines(), name)
        raise _invalid(f"{name} is not JSON ({error.msg} at line {error.lineno}, column {error.colno})") from None
    if isinstance(document, dict):
        return [Row("row 1", document)]
    if not isinstance(document, list):
        raise _invalid(f"{name} is {_kind(document)}, expected a list of JSON objects")
    bad = [f"row {n} is {_kind(v)}, expected a JSON object" for n, v in enumerate(document, 1) if type(v) is not dict]
    _raise_problems(bad, name)
    return [Row(f"row {number}", value) for number, value in enumerate(document, start=1)]


def _read_csv_file(path: Path, name: str) -> list[Row]:
    text = path.read_text(encoding="utf-8-sig")
    reader = csv.DictReader(io.StringIO(text, newline=""))
    rows, problems = [], []
    for number, value in enumerate(reader, start=1):
        if None in value or None in value.values():
            columns = len(reader.fieldnames or ())
            problems.append(f"row {number} (line {reader.line_num}) does not have the header's {columns} columns")
        else:
            rows.append(Row(f"row {number}", dict(value)))
    _raise_problems(problems, name)
    return rows


def _read_parquet(path: Path, name: str) -> list[Row]:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    try:
        table = parquet.read_table(path)
    except pa.ArrowInvalid as error:
        raise _invalid(f"{name} is not a Parquet file ({error})") from None
    return [Row(f"row {number}", value) for number, value in enumerate(table.to_pylist(), start=1)]


# --- Understanding


def detect_format(rows: Sequence[Row], columns: Columns | None, *, name: str = "dataset") -> Format:
    """The format that the first row has the columns of."""
    first = rows[0].value
    for candidate, parts in PARTS.items():
        if all(_column(columns, part) in first for part in parts):
            logger.info("detected format dataset=%s format=%s columns=%s", name, candidate, ",".join(sorted(first)))
            return candidate
    raise _invalid(
        f"{name} {rows[0].where} has the columns {_listed(first)}; expected {_expected_columns(columns)}. "
        "Rename them, or map them with dataset.columns."
    )


def check_rows(
    rows: Sequence[Row], row_format: Format, columns: Columns | None, *, loss_on: str, name: str = "dataset"
) -> list[Example]:
    """Every row as an example, or a TrainingError (DatasetInvalid) that names the wrong ones."""
    examples, problems = [], []
    for row in rows:
        problem = _problem_of(row, row_format, columns, loss_on)
        if problem:
            problems.append(f"{row.where}: {problem}")
        else:
            examples.append(_to_example(row, row_format, columns))
    _raise_problems(problems, name)
    return examples


def split_rows(examples: Sequence[Example], fraction: float, seed: int) -> tuple[list[Example], list[Example]]:
    """Training and held-out examples: a random choice that the seed fixes, each part in the order of the file."""
    count = max(1, round(len(examples) * fraction))
    if count >= len(examples):
        raise _invalid(
            f"dataset has {len(examples)} row(s), of which evaluation.fraction={fraction} holds out {count}: none is left "
            "to train on. Add rows or remove evaluation."
        )
    held_out = set(random.Random(f"evaluation-{seed}").sample(range(len(examples)), count))  # noqa: S311
    return (
        [example for i, example in enumerate(examples) if i not in held_out],
        [example for i, example in enumerate(examples) if i in held_out],
    )


def _column(columns: Columns | None, part: str) -> str:
    return (getattr(columns, part) if columns else None) or part


def _expected_columns(columns: Columns | None) -> str:
    return " or ".join("+".join(_column(columns, part) for part in parts) for parts in PARTS.values())


def _problem_of(row: Row, row_format: Format, columns: Columns | None, loss_on: str) -> str | None:
    for part in PARTS[row_format]:
        column = _column(columns, part)
        if column not in row.value:
            return f"column {column} is missing, found {_listed(row.value)}"
        value = row.value[column]
        if row_format == "messages":
            return _problem_of_messages(value, column, loss_on)
        if not isinstance(value, str):
            return f"{column} is {_kind(value)}, expected text"
        if not value.strip() and part != "prompt":
            return f"{column} is empty, expected text"
    return None


def _problem_of_messages(value: Any, column: str, loss_on: str) -> str | None:
    if not isinstance(value, list) or not value:
        return f"{column} is {_kind(value)}, expected a list of {{role, content}}"
    for index, message in enumerate(value):
        place = f"{column}[{index}]"
        if not isinstance(message, dict):
            return f"{place} is {_kind(message)}, expected {{role, content}}"
        if "role" not in message:
            return f"{place} has no role, expected one of {', '.join(ROLES)}"
        if message["role"] not in ROLES:
            return f"{place}.role is {message['role']!r}, expected one of {', '.join(ROLES)}"
        content = message.get("content")
        if not isinstance(content, str) and not (content is None and message.get("tool_calls")):
            return f"{place}.content is {_kind(content)}, expected text"
        if message.get("weight") not in (None, 0, 1):
            return f"{place}.weight is {message['weight']!r}, expected 0 or 1"
    if loss_on == "completion" and not any(_is_learnt(message) for message in value):
        return f"{column} has no assistant message to learn from; add one, or set hyperparameters.lossOn to all"
    return None


def _is_learnt(message: dict[str, Any]) -> bool:
    """Whether a message carries loss: an assistant's, unless it is weighted 0 as OpenAI's format allows."""
    return message["role"] == "assistant" and message.get("weight") != 0


def _to_example(row: Row, row_format: Format, columns: Columns | None) -> Example:
    values = {part: row.value[_column(columns, part)] for part in PARTS[row_format]}
    if row_format == "messages":
        tools = row.value.get("tools")
        return Example(where=row.where, messages=values["messages"], tools=tools if isinstance(tools, list) else None)
    return Example(where=row.where, **values)


# --- Tokenising


def tokenize(
    examples: Sequence[Example], tokenizer: Any, *, max_length: int, loss_on: str, name: str = "dataset"
) -> Tokenized:
    """Token ids and labels of every example. Raises TrainingError (DatasetInvalid) naming rows that cannot be rendered."""
    rows, problems = [], []
    truncated = dropped = 0
    for example in examples:
        try:
            row = _tokenize_one(example, tokenizer, loss_on)
        except _Unrenderable as error:
            problems.append(f"{example.where}: {error}")
            continue
        if not row.loss_tokens:
            problems.append(f"{example.where}: no token carries loss")
            continue
        if len(row.input_ids) > max_length:
            truncated += 1
            row = TokenRow(row.input_ids[:max_length], row.labels[:max_length])
        if row.loss_tokens:
            rows.append(row)
        else:
            dropped += 1
    _raise_problems(problems, name)
    if not rows:
        raise _invalid(
            f"all {dropped} rows of {name} lose every token with loss when cut to hyperparameters.maxLength={max_length}; "
            "raise it"
        )
    return Tokenized(rows, truncated, dropped)


class _Unrenderable(Exception):
    """The chat template and a row do not go together."""


def _tokenize_one(example: Example, tokenizer: Any, loss_on: str) -> TokenRow:
    if example.text is not None:
        ids = _with_end(tokenizer(example.text)["input_ids"], tokenizer)
        return TokenRow(ids, list(ids))
    if example.messages is None and not tokenizer.chat_template:
        return _tokenize_plain_pair(str(example.prompt), str(example.completion), tokenizer, loss_on)
    messages = example.messages or [
        {"role": "user", "content": example.prompt},
        {"role": "assistant", "content": example.completion},
    ]
    if not tokenizer.chat_template:
        raise _Unrenderable(
            "the model has no chat template; use rows of prompt and completion, or an instruction model"
        )
    return _tokenize_chat(messages, example.tools, tokenizer, loss_on)


def _tokenize_plain_pair(prompt: str, completion: str, tokenizer: Any, loss_on: str) -> TokenRow:
    """Prompt and completion are tokenised apart: at inference the prompt is on its own, too."""
    head = tokenizer(prompt)["input_ids"]
    if head and head[-1] == tokenizer.eos_token_id:
        head = head[:-1]
    tail = _with_end(tokenizer(completion, add_special_tokens=False)["input_ids"], tokenizer)
    return TokenRow(head + tail, (list(head) if loss_on == "all" else [IGNORED] * len(head)) + tail)


def _tokenize_chat(messages: list[dict[str, Any]], tools: list[Any] | None, tokenizer: Any, loss_on: str) -> TokenRow:
    text = _render(messages, tools, tokenizer)
    spans = [(0, len(text))] if loss_on == "all" else _learnt_spans(messages, tools, text, tokenizer)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids = encoded["input_ids"]
    labels = [
        token if any(start < last and first < end for first, last in spans) else IGNORED
        for token, (start, end) in zip(ids, encoded["offset_mapping"], strict=True)
    ]
    return TokenRow(ids, labels)


def _learnt_spans(
    messages: list[dict[str, Any]], tools: list[Any] | None, text: str, tokenizer: Any
) -> list[tuple[int, int]]:
    """Character ranges of `text` that the assistant writes: from the generation prompt to the end-of-turn token.

    A turn's range is the difference between two renderings, the conversation up to the turn with the generation prompt and
    the conversation including it. That holds for any template that renders earlier turns alike in both.
    """
    spans = []
    for index, message in enumerate(messages):
        if not _is_learnt(message):
            continue
        before = _render(messages[:index], tools, tokenizer, add_generation_prompt=True)
        after = _render(messages[: index + 1], tools, tokenizer)
        if not (text.startswith(before) and text.startswith(after) and len(after) > len(before)):
            raise _Unrenderable(
                f"the model's chat template renders messages[{index}] differently inside a longer conversation, so its "
                "tokens cannot be told apart; make it the last message, or set hyperparameters.lossOn to all"
            )
        spans.append((len(before), _end_of_turn(after, len(before), tokenizer)))
    return spans


def _end_of_turn(rendered: str, start: int, tokenizer: Any) -> int:
    """Where the assistant stops: after the end-of-turn token, without the line break that templates put behind it."""
    trimmed = rendered.rstrip()
    ends_with_special = any(trimmed.endswith(token) for token in _special_tokens(tokenizer))
    return len(trimmed) if ends_with_special and len(trimmed) > start else len(rendered)


def _special_tokens(tokenizer: Any) -> list[str]:
    return [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]


def _render(
    messages: list[dict[str, Any]], tools: list[Any] | None, tokenizer: Any, *, add_generation_prompt: bool = False
) -> str:
    if not messages:
        return ""
    from jinja2 import TemplateError

    shown = [{key: value for key, value in m.items() if key != "weight" and value is not None} for m in messages]
    try:
        text: str = tokenizer.apply_chat_template(
            shown, tools=tools, tokenize=False, add_generation_prompt=add_generation_prompt
        )
    except TemplateError as error:
        raise _Unrenderable(f"the model's chat template refuses it: {error}") from None
    return text


def _with_end(ids: list[int], tokenizer: Any) -> list[int]:
    end = tokenizer.eos_token_id
    return ids if end is None or ids[-1:] == [end] else [*ids, end]


# --- Saying what is wrong


def _invalid(message: str) -> TrainingError:
    return TrainingError(Reason.DATASET_INVALID, message[:1].upper() + message[1:])


def _raise_problems(problems: list[str], name: str) -> None:
    if not problems:
        return
    rest = len(problems) - SHOWN_PROBLEMS
    shown = "; ".join(problem[:400] for problem in problems[:SHOWN_PROBLEMS])
    raise _invalid(f"{name} {shown}" + (f"; and {rest} more rows" if rest > 0 else ""))


def _kind(value: Any) -> str:
    """What a JSON value is, in words that never repeat the user's data."""
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "text" if value else "an empty text"
        case list():
            return "a list" if value else "an empty list"
        case dict():
            return "an object"
        case _:
            return f"of type {type(value).__name__}"


def _listed(value: dict[str, Any]) -> str:
    names = [re.sub(r"\s+", " ", str(name))[:40] for name in value]
    return ", ".join(names[:8]) + (", …" if len(names) > 8 else "") if names else "none"


def _label(config: RowsConfig, name: str) -> str:
    return f"{name} {config.source or config.path}" if config.inline is None else name

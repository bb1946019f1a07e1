"""From rows to labels: every way a row can be wrong, and exactly which tokens carry loss."""

import json
from pathlib import Path
from typing import Any

import pytest

from finetune_api.reasons import Reason
from finetune_api.training import RowsConfig
from finetune_api.v1alpha1.finetune_job import Columns
from finetune_trainer import data
from finetune_trainer.data import IGNORED
from finetune_trainer.errors import TrainingError

GOOD = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}


def prepare(rows: str | list[Any], columns: Columns | None = None, loss_on: str = "completion") -> list[data.Example]:
    text = rows if isinstance(rows, str) else "\n".join(json.dumps(row) for row in rows)
    read = data.read_rows(RowsConfig(inline=text))
    return data.check_rows(read, data.detect_format(read, columns), columns, loss_on=loss_on)


# --- Reading


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ("", "Dataset is empty; expected at least one row"),
        ('{"text": "a"}\n{"text": ', "line 2 is not JSON (Expecting value at column 10)"),
        ('{"text": "a"}\n\n[1]', "line 3 is a list, expected a JSON object"),
        ([{"question": "a"}], "line 1 has the columns question; expected messages or prompt+completion or text"),
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
        ([{"messages": [{"role": "user", "content": [1]}]}], "messages[0].content is a list, expected text"),
        ([{"messages": [{"role": "user", "content": "a"}]}], "messages has no assistant message to learn from"),
        (
            [{"messages": [{"role": "assistant", "content": "a", "weight": 2}]}],
            "messages[0].weight is 2, expected 0 or 1",
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


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet", ""])
def test_every_file_format_gives_the_same_rows(tmp_path: Path, suffix: str) -> None:
    rows = [{"prompt": 'Grüße, "quoted"\nand broken', "completion": "B"}, {"prompt": "C", "completion": "D"}]
    path = tmp_path / f"rows{suffix}"
    if suffix == ".json":
        path.write_text(json.dumps(rows))
    elif suffix == ".csv":
        path.write_text('prompt,completion\n"Grüße, ""quoted""\nand broken",B\nC,D\n')
    elif suffix == ".parquet":
        import pyarrow as pa
        from pyarrow import parquet

        parquet.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("\n".join(json.dumps(row) for row in rows))
    assert [row.value for row in data.read_rows(RowsConfig(path=str(path)))] == rows


@pytest.mark.parametrize(
    ("name", "content", "reason", "expected"),
    [
        ("missing.jsonl", None, Reason.DATASET_NOT_FOUND, "pvc://data/rows does not exist"),
        ("rows.xlsx", b"x", Reason.DATASET_INVALID, "ends in .xlsx; expected one of .jsonl, .json, .csv, .parquet"),
        ("rows.parquet", b"x", Reason.DATASET_INVALID, "is not a Parquet file"),
        ("rows.jsonl", b"\xff\xfe", Reason.DATASET_INVALID, "is not UTF-8 text (byte 0)"),
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
        data.read_rows(RowsConfig(path=str(path), source="pvc://data/rows"))
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


# --- Labels


def learnt(row: data.TokenRow, tokenizer: Any) -> str:
    """The text of the tokens that carry loss."""
    text: str = tokenizer.decode([label for label in row.labels if label != IGNORED])
    return text


def tokenize(rows: list[Any], tokenizer: Any, loss_on: str = "completion", max_length: int = 512) -> data.Tokenized:
    return data.tokenize(prepare(rows, loss_on=loss_on), tokenizer, max_length=max_length, loss_on=loss_on)


CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Where is my order?"},
    {"role": "assistant", "content": "It left\nthis morning."},
    {"role": "user", "content": "Thank you"},
    {"role": "assistant", "content": "Grüße 👋"},
]


@pytest.mark.model
def test_in_a_conversation_exactly_the_assistants_words_and_ends_of_turn_carry_loss(tokenizer: Any) -> None:
    row = tokenize([{"messages": CHAT}], tokenizer).rows[0]
    assert learnt(row, tokenizer) == "It left\nthis morning.<|im_end|>Grüße 👋<|im_end|>"
    assert tokenizer.decode(row.input_ids).endswith("<|im_start|>assistant\nGrüße 👋<|im_end|>\n")


@pytest.mark.model
def test_a_turn_of_weight_zero_carries_no_loss(tokenizer: Any) -> None:
    chat = [*CHAT[:2], {**CHAT[2], "weight": 0}, *CHAT[3:]]
    assert learnt(tokenize([{"messages": chat}], tokenizer).rows[0], tokenizer) == "Grüße 👋<|im_end|>"


@pytest.mark.model
def test_a_prompt_and_its_completion_become_a_conversation_if_the_model_has_a_chat_template(tokenizer: Any) -> None:
    row = tokenize([{"prompt": "Hi", "completion": " Hello"}], tokenizer).rows[0]
    assert (
        tokenizer.decode(row.input_ids) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n Hello<|im_end|>\n"
    )
    assert learnt(row, tokenizer) == " Hello<|im_end|>"


@pytest.mark.model
def test_without_a_chat_template_the_completion_and_its_end_carry_loss(plain_tokenizer: Any) -> None:
    row = tokenize([{"prompt": "2+2=", "completion": "4"}], plain_tokenizer).rows[0]
    assert learnt(row, plain_tokenizer) == "4<|im_end|>"
    assert row.input_ids[: -row.loss_tokens] == plain_tokenizer("2+2=")["input_ids"]


@pytest.mark.model
@pytest.mark.parametrize("row", [{"text": "The sea"}, {"messages": CHAT}, {"prompt": "a", "completion": "b"}])
def test_loss_on_all_means_every_token(tokenizer: Any, row: dict[str, Any]) -> None:
    tokens = tokenize([row], tokenizer, loss_on="all").rows[0]
    assert tokens.labels == tokens.input_ids


@pytest.mark.model
def test_a_conversation_needs_a_model_with_a_chat_template(plain_tokenizer: Any) -> None:
    with pytest.raises(TrainingError, match="line 1: the model has no chat template"):
        tokenize([GOOD], plain_tokenizer)


@pytest.mark.model
def test_a_template_that_refuses_a_row_is_quoted_with_the_row() -> None:
    from tiny_model import make_tiny_tokenizer

    strict = make_tiny_tokenizer()
    strict.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        + strict.chat_template
    )
    with pytest.raises(TrainingError, match="line 2: the model's chat template refuses it: no system role"):
        tokenize([GOOD, {"messages": CHAT}], strict)


@pytest.mark.model
def test_a_template_that_rewrites_earlier_turns_is_found_out() -> None:
    from tiny_model import make_tiny_tokenizer

    forgetful = make_tiny_tokenizer()
    forgetful.chat_template = "{{ messages | length }}" + forgetful.chat_template
    with pytest.raises(TrainingError, match=r"line 1: .* renders messages\[2\] differently"):
        tokenize([{"messages": CHAT}], forgetful)


@pytest.mark.model
def test_long_rows_are_cut_and_rows_left_without_loss_are_dropped_and_counted(tokenizer: Any) -> None:
    long_prompt = {"prompt": "word " * 50, "completion": "never seen"}
    long_answer = {"prompt": "Hi", "completion": "word " * 50}
    result = tokenize([long_prompt, long_answer, {"prompt": "Hi", "completion": "Hello"}], tokenizer, max_length=40)
    assert (len(result.rows), result.truncated, result.dropped) == (2, 2, 1)
    assert max(len(row.input_ids) for row in result.rows) == 40
    with pytest.raises(TrainingError, match="All 1 rows of dataset lose every token with loss when cut to"):
        tokenize([long_prompt], tokenizer, max_length=40)

"""From examples to token ids and labels: rendering with the model's chat template, and marking which tokens carry loss."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from finetune_trainer.data.messages import is_learnt
from finetune_trainer.data.problems import Problems, invalid
from finetune_trainer.data.rows import Example

IGNORED: Final = -100
"""Label of a token without loss; torch's cross entropy leaves it out."""


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


def tokenize(
    examples: Sequence[Example], tokenizer: Any, *, max_length: int, loss_on: str, name: str = "dataset"
) -> Tokenized:
    """Token ids and labels of every example. Raises TrainingError (DatasetInvalid) naming rows that cannot be rendered."""
    rows, problems = [], Problems(name)
    truncated = dropped = 0
    for example in examples:
        try:
            row = _tokenize_one(example, tokenizer, loss_on)
        except _Unrenderable as error:
            problems.add(f"{example.where}: {error}")
            continue
        if not row.loss_tokens:
            problems.add(f"{example.where}: no token carries loss")
            continue
        if len(row.input_ids) > max_length:
            truncated += 1
            row = TokenRow(row.input_ids[:max_length], row.labels[:max_length])
        if row.loss_tokens:
            rows.append(row)
        else:
            dropped += 1
    problems.raise_any()
    if not rows:
        raise invalid(
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
        if not is_learnt(message):
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

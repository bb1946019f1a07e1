"""From examples to token ids: rendered one by one, tokenized in batches that the tokenizer spreads over the cores."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from finetune_trainer.data.problems import Problems, invalid
from finetune_trainer.data.rendering import Spans, Unrenderable, render_learnt
from finetune_trainer.data.rows import Example
from finetune_trainer.data.token_rows import Tokenized, TokenRowsBuilder, as_ids

logger = logging.getLogger(__name__)

BATCH_ROWS: Final = 512
"""Rows per batch: enough for every core, few enough to see progress and a stop signal."""
BATCH_CHARACTERS: Final = 1 << 20
"""Characters per batch, because the tokenizer's own lists take some hundred bytes per token."""
LOG_SECONDS: Final = 10.0
"""Seconds between two progress lines."""
SHOWN_PLACES: Final = 5
"""Truncated and dropped rows that are named; the others are counted."""


def tokenize(
    examples: Sequence[Example],
    tokenizer: Any,
    *,
    max_length: int,
    loss_on: str,
    name: str = "dataset",
    check_stop: Callable[[], None] = lambda: None,
) -> Tokenized:
    """Tokenize and label every example; `check_stop` is called between batches and may raise.

    Raises TrainingError (DatasetInvalid) naming rows that cannot be rendered.
    """
    problems = Problems(name)
    builder = TokenRowsBuilder()
    truncated, dropped = _Places(), _Places()
    progress = _Progress(name, len(examples))
    for batch in _batches(examples):
        check_stop()
        for example, ids, learnt in _tokenize_batch(batch, tokenizer, loss_on, problems):
            if not learnt[1:].any():
                problems.add(f"{example.where}: no token carries loss")
                continue
            if len(ids) > max_length:
                truncated.add(example.where)
            if learnt[1:max_length].any():
                builder.add(ids[:max_length], learnt[:max_length])
            else:
                dropped.add(example.where)
        progress.advance(len(batch))
    problems.raise_any()
    rows = builder.build()
    if not rows:
        raise invalid(
            f"all {dropped.count} rows of {name} lose every token with loss when truncated to "
            f"hyperparameters.maxLength={max_length}; raise it"
        )
    return Tokenized(rows, truncated.count, dropped.count, tuple(truncated.first), tuple(dropped.first))


@dataclass
class _Text:
    """Text to tokenize, with the character ranges that carry loss."""

    example: Example
    text: str
    spans: Spans


def _tokenize_batch(
    examples: Sequence[Example], tokenizer: Any, loss_on: str, problems: Problems
) -> Iterator[tuple[Example, NDArray[np.int32], NDArray[np.bool_]]]:
    """Yield each example with its token ids, and for each of them whether it carries loss."""
    if examples[0].text is not None:
        yield from _tokenize_texts(examples, tokenizer)
    elif examples[0].messages is None and not tokenizer.chat_template:
        yield from _tokenize_plain_pairs(examples, tokenizer, loss_on)
    else:
        yield from _tokenize_chats(examples, tokenizer, loss_on, problems)


def _tokenize_texts(
    examples: Sequence[Example], tokenizer: Any
) -> Iterator[tuple[Example, NDArray[np.int32], NDArray[np.bool_]]]:
    for example, ids in zip(examples, _ids(tokenizer, [str(e.text) for e in examples]), strict=True):
        tokens = as_ids(_with_end(ids, tokenizer))
        yield example, tokens, np.ones(len(tokens), np.bool_)


def _tokenize_plain_pairs(
    examples: Sequence[Example], tokenizer: Any, loss_on: str
) -> Iterator[tuple[Example, NDArray[np.int32], NDArray[np.bool_]]]:
    """Tokenize prompt and completion separately, because at inference the prompt stands alone too."""
    heads = _ids(tokenizer, [str(e.prompt) for e in examples])
    tails = _ids(tokenizer, [str(e.completion) for e in examples], add_special_tokens=False)
    for example, head, tail in zip(examples, heads, tails, strict=True):
        if head and head[-1] == tokenizer.eos_token_id:
            head.pop()
        tokens = as_ids([*head, *_with_end(tail, tokenizer)])
        yield example, tokens, np.arange(len(tokens)) >= (0 if loss_on == "all" else len(head))


def _tokenize_chats(
    examples: Sequence[Example], tokenizer: Any, loss_on: str, problems: Problems
) -> Iterator[tuple[Example, NDArray[np.int32], NDArray[np.bool_]]]:
    rendered = []
    for example in examples:
        try:
            rendered.append(_Text(example, *_render(example, tokenizer, loss_on)))
        except Unrenderable as error:
            problems.add(f"{example.where}: {error}")
    if not rendered:
        return
    encoded = _encode(tokenizer, [r.text for r in rendered], add_special_tokens=False, return_offsets_mapping=True)
    for row, ids, offsets in zip(rendered, encoded["input_ids"], encoded["offset_mapping"], strict=True):
        yield row.example, as_ids(ids), _overlaps(offsets, row.spans)


def _render(example: Example, tokenizer: Any, loss_on: str) -> tuple[str, Spans]:
    if not tokenizer.chat_template:
        raise Unrenderable("the model has no chat template; use rows of prompt and completion, or an instruction model")
    messages = example.messages or [
        {"role": "user", "content": example.prompt},
        {"role": "assistant", "content": example.completion},
    ]
    return render_learnt(messages, example.tools, tokenizer, loss_on)


def _overlaps(offsets: list[tuple[int, int]], spans: Spans) -> NDArray[np.bool_]:
    """Return for each token whether any of its characters is in a span."""
    starts, ends = np.asarray(offsets, dtype=np.int64).reshape(-1, 2).T
    learnt = np.zeros(len(starts), np.bool_)
    for first, last in spans:
        learnt |= (starts < last) & (first < ends)
    return learnt


def _ids(tokenizer: Any, texts: list[str], *, add_special_tokens: bool = True) -> list[list[int]]:
    ids: list[list[int]] = _encode(tokenizer, texts, add_special_tokens=add_special_tokens)["input_ids"]
    return ids


def _encode(tokenizer: Any, texts: list[str], **options: Any) -> Any:
    # verbose=False: transformers would warn of every text beyond the model's limit; the report says it once.
    return tokenizer(texts, return_attention_mask=False, verbose=False, **options)


def _with_end(ids: list[int], tokenizer: Any) -> list[int]:
    end = tokenizer.eos_token_id
    return ids if end is None or ids[-1:] == [end] else [*ids, end]


def characters(examples: Sequence[Example]) -> int:
    """Count the characters of all texts, a measure of the work before it is done."""
    return sum(_characters(example) for example in examples)


def _batches(examples: Sequence[Example]) -> Iterator[Sequence[Example]]:
    start, characters = 0, 0
    for index, example in enumerate(examples):
        characters += _characters(example)
        if index + 1 - start >= BATCH_ROWS or characters >= BATCH_CHARACTERS:
            yield examples[start : index + 1]
            start, characters = index + 1, 0
    if start < len(examples):
        yield examples[start:]


def _characters(example: Example) -> int:
    if example.messages is not None:
        return sum(len(message.get("content") or "") for message in example.messages)
    return sum(len(part) for part in (example.prompt, example.completion, example.text) if part)


class _Places:
    """Counter of rows that remembers the places of the first ones."""

    def __init__(self) -> None:
        self.count = 0
        self.first: list[str] = []

    def add(self, where: str) -> None:
        self.count += 1
        if len(self.first) < SHOWN_PLACES:
            self.first.append(where)


class _Progress:
    """Log progress every few seconds; nothing for a dataset that finishes sooner."""

    def __init__(self, name: str, total: int) -> None:
        self._name = name
        self._total = total
        self._done = 0
        self._started = self._told = time.monotonic()

    def advance(self, rows: int) -> None:
        self._done += rows
        now = time.monotonic()
        if now - self._told >= LOG_SECONDS:
            self._told = now
            rate = self._done / (now - self._started)
            logger.info(
                "tokenizing dataset=%s rows=%d of=%d seconds_left=%.0f",
                self._name,
                self._done,
                self._total,
                (self._total - self._done) / rate,
            )

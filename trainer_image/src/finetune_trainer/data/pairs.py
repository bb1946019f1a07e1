"""Preference pairs as rows: each answer with its prompt is a row, the chosen one before the rejected one.

Pairs are therefore tokenized, cached, reported and packed like other rows; packing computes their common prompt once.
"""

from collections.abc import Iterator, Sequence
from typing import overload

from finetune_trainer.data.problems import invalid
from finetune_trainer.data.rows import Example, Message
from finetune_trainer.data.token_rows import Tokenized, TokenRow

Pair = tuple[TokenRow, TokenRow]
"""The chosen and the rejected answer, each after the same prompt."""


def answers_as_examples(pairs: Sequence[Example]) -> list[Example]:
    """Return two examples per pair, in which only the answer carries loss; all are chats if any pair is one."""
    as_chats = any(isinstance(pair.prompt, list) for pair in pairs)
    to_example = _chat if as_chats else _text
    return [to_example(pair, answer) for pair in pairs for answer in (pair.chosen, pair.rejected)]


def _text(pair: Example, answer: str | list[Message] | None) -> Example:
    return Example(where=pair.where, prompt=pair.prompt, gap=pair.gap, completion=str(answer))


def _chat(pair: Example, answer: str | list[Message] | None) -> Example:
    # A turn of the assistant in the prompt is context, not an answer.
    context = [{**message, "weight": 0} for message in _as_messages(pair.prompt, "user")]
    return Example(where=pair.where, messages=[*context, *_as_messages(answer, "assistant")], tools=pair.tools)


def _as_messages(part: str | list[Message] | None, role: str) -> list[Message]:
    return part if isinstance(part, list) else [{"role": role, "content": part}]


def require_whole_pairs(answers: Tokenized, pairs: Sequence[Example], max_length: int, name: str) -> Tokenized:
    """Raise TrainingError (DatasetInvalid) if answers were dropped or cut until both are equal: neither can be compared."""
    if answers.dropped:
        raise invalid(
            f"{answers.dropped} answers of {name}, the first of them in {answers.dropped_places[0]}, lose every token when cut "
            f"to hyperparameters.maxLength={max_length}; raise it, or shorten their prompts"
        )
    contents = list(answers.rows.contents())
    equal = [pair.where for pair, one, other in zip(pairs, contents[::2], contents[1::2], strict=True) if one == other]
    if equal:
        raise invalid(
            f"{_counted(len(equal))} of {name}, the first in {equal[0]}, have the same tokens in both answers when cut to "
            f"hyperparameters.maxLength={max_length}; raise it, or remove them"
        )
    return answers


def _counted(count: int) -> str:
    return "1 pair" if count == 1 else f"{count} pairs"


class PreferencePairs(Sequence[Pair]):
    """Pairs over rows that alternate between chosen and rejected answers."""

    def __init__(self, rows: Sequence[TokenRow]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows) // 2

    @overload
    def __getitem__(self, index: int) -> Pair: ...

    @overload
    def __getitem__(self, index: slice) -> list[Pair]: ...

    def __getitem__(self, index: int | slice) -> Pair | list[Pair]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        pair = range(len(self))[index]
        return self._rows[2 * pair], self._rows[2 * pair + 1]

    def __iter__(self) -> Iterator[Pair]:
        return (self[i] for i in range(len(self)))


def flattened(pairs: Sequence[Pair]) -> list[TokenRow]:
    """Return the rows of pairs, chosen and rejected alternating."""
    return [row for pair in pairs for row in pair]

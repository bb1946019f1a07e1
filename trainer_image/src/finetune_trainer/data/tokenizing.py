"""From examples to token ids: rendered one by one, tokenized in batches that the tokenizer spreads over the cores."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from finetune_model.borders import BorderError, TurnIds, TurnTokenizer
from finetune_model.chat import DEFAULT_SETTINGS, ChatSettings, encode_raw
from finetune_model.turns import TurnText, UnpredictableTemplateError
from finetune_trainer.data.problems import Problems, invalid
from finetune_trainer.data.rendering import Renderer, Unrenderable
from finetune_trainer.data.rows import Example
from finetune_trainer.data.token_rows import EndToken, Tokenized, TokenRowsBuilder, TurnCounts, as_ids
from finetune_trainer.data.unrendered import LostAnswerError, count_unrendered
from finetune_trainer.data.unused import KeyCounter

logger = logging.getLogger(__name__)

BATCH_ROWS: Final = 512
"""Rows per batch: enough for every core, few enough to see progress and a stop signal."""
BATCH_CHARACTERS: Final = 1 << 20
"""Characters per batch, because the tokenizer's own lists take some hundred bytes per token."""
LOG_SECONDS: Final = 10.0
"""Seconds between two progress lines."""
SHOWN_PLACES: Final = 5
"""Truncated and dropped rows that are named; the others are counted."""

Sequences = list[tuple[NDArray[np.int32], NDArray[np.bool_]]]
"""Token ids with their loss, of one row: one sequence, or several if its answers cannot be learnt in one."""


def tokenize(
    examples: Sequence[Example],
    tokenizer: Any,
    *,
    max_length: int,
    loss_on: str,
    name: str = "dataset",
    settings: ChatSettings = DEFAULT_SETTINGS,
    pairs: bool = False,
    check_stop: Callable[[], None] = lambda: None,
) -> Tokenized:
    """Tokenize and label every example; `check_stop` is called between batches and may raise.

    `settings` are those that chats will be served with; `pairs`: two examples that follow each other are the
    answers of one row, which counts once, and whose answers must be one sequence each. Raises TrainingError
    (DatasetInvalid) naming rows that cannot be rendered.
    """

    def encoder(*, every_prompt: bool) -> _RowEncoder:
        renderer = Renderer(tokenizer, loss_on, settings, every_prompt=every_prompt)
        return _RowEncoder(tokenizer, renderer, whole=loss_on == "all", one_each=pairs)

    try:
        return _tokenize(examples, encoder(every_prompt=False), max_length, name, check_stop)
    except UnpredictableTemplateError:
        logger.info("rows of one shape are rendered differently, so that every prompt is rendered dataset=%s", name)
        return _tokenize(examples, encoder(every_prompt=True), max_length, name, check_stop)


def _tokenize(
    examples: Sequence[Example], encoder: "_RowEncoder", max_length: int, name: str, check_stop: Callable[[], None]
) -> Tokenized:
    problems = Problems(name)
    builder = TokenRowsBuilder()
    truncated, dropped = _Places(pairs=encoder.one_each), _Places()
    progress = _Progress(name, len(examples))
    for batch in _batches(examples):
        check_stop()
        for example, sequences in encoder.encode(batch, problems):
            if not any(learnt[1:].any() for _, learnt in sequences):
                problems.add(f"{example.where}: no token carries loss")
                continue
            for ids, learnt in sequences:
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
    return Tokenized(
        rows,
        truncated.count,
        dropped.count,
        tuple(truncated.first),
        tuple(dropped.first),
        encoder.turn_counts(),
        encoder.unrendered.counts(),
    )


class _RowEncoder:
    """Encodes rows of any format with one tokenizer, and counts how their answers end."""

    def __init__(self, tokenizer: Any, renderer: Renderer, *, whole: bool, one_each: bool) -> None:
        """`whole` puts loss on every token of a row, and `one_each` refuses rows that need several sequences."""
        self._tokenizer = tokenizer
        self._all = whole
        self.one_each = one_each
        self._renderer = renderer
        self._turns = TurnTokenizer(tokenizer)
        added = tokenizer.added_tokens_decoder
        self._end_ids = {id_ for id_, token in added.items() if token.special} | {tokenizer.eos_token_id}
        self._special = tuple(token.content for token in added.values() if token.special)
        self._ends: Counter[int] = Counter()
        self._raw = self._split = 0
        self.unrendered = KeyCounter()
        """Texts of rows that the template leaves out."""

    def encode(self, batch: Sequence[Example], problems: Problems) -> Iterator[tuple[Example, Sequences]]:
        """Yield the sequences of each row, in order; rows that cannot be rendered are added to `problems`."""
        # A row that its source's weight repeats is one object, which is encoded once.
        different = list({id(example): example for example in batch}.values())
        texts = [example for example in different if example.text is not None]
        raw = [example for example in different if self._is_raw(example)]
        chats = [example for example in different if example.text is None and not self._is_raw(example)]
        found: dict[int, Sequences] = {}
        found.update(zip(map(id, texts), self._texts(texts), strict=True))
        found.update(zip(map(id, raw), self._raw_pairs(raw), strict=True))
        found.update(self._chats(chats, problems))
        for example in batch:
            if id(example) in found:
                yield example, found[id(example)]

    def turn_counts(self) -> TurnCounts:
        """Return how the answers so far end."""
        ends = [(id_, count) for id_, count in self._ends.most_common() if id_ in self._end_ids]
        return TurnCounts(
            ends=tuple(EndToken(id_, str(self._tokenizer.convert_ids_to_tokens(id_)), count) for id_, count in ends),
            unended=sum(self._ends.values()) - sum(count for _, count in ends),
            split_rows=self._split,
            raw_rows=self._raw,
        )

    def _is_raw(self, example: Example) -> bool:
        """Return whether prompt and completion are learnt as they are: without a template, or with its tokens in them already."""
        if example.messages is not None or example.text is not None:
            return False
        if not self._tokenizer.chat_template:
            return True
        text = f"{example.prompt}{example.completion}"
        return any(token in text for token in self._special)

    def _texts(self, examples: Sequence[Example]) -> Iterator[Sequences]:
        for ids in encode_raw(self._tokenizer, [str(example.text) for example in examples]):
            tokens = as_ids(self._with_end(ids))
            yield [(tokens, np.ones(len(tokens), np.bool_))]

    def _raw_pairs(self, examples: Sequence[Example]) -> Iterator[Sequences]:
        """Tokenize prompt and completion apart, because `/v1/completions` gets the prompt alone."""
        heads = encode_raw(self._tokenizer, [str(example.prompt) for example in examples])
        tails = self._turns.continuations([f"{example.gap}{example.completion}" for example in examples])
        for example, head, tail in zip(examples, heads, tails, strict=True):
            if self._tokenizer.chat_template:
                self._raw += 1
            # A rendered completion may end with the template's own end token.
            is_ended = bool(self._special) and str(example.completion).rstrip().endswith(self._special)
            tokens = as_ids([*head, *(tail if is_ended else self._with_end(tail))])
            self._ends[int(tokens[-1])] += 1
            yield [(tokens, np.arange(len(tokens)) >= (0 if self._all else len(head)))]

    def _chats(self, examples: Sequence[Example], problems: Problems) -> Iterator[tuple[int, Sequences]]:
        texts: list[TurnText] = []
        owners: list[Example] = []
        for example in examples:
            try:
                rendered = self._renderer.render(messages := _messages_of(example), example.tools)
                count_unrendered(example.where, messages, example.tools, rendered, self.unrendered)
            except (LostAnswerError, Unrenderable) as error:
                problems.add(f"{example.where}: {error}")
                continue
            texts += rendered
            owners += [example] * len(rendered)
        if not texts:
            return
        try:
            encoded = self._turns.encode(texts)
        except BorderError as error:
            problems.add(f"{owners[0].where} or a later row: {error}")
            return
        rows: dict[int, list[TurnIds]] = {}
        first: dict[int, Example] = {}
        for example, turns in zip(owners, encoded, strict=True):
            known = rows.setdefault(id(example), [])
            first.setdefault(id(example), example)
            # The whole conversation comes first. With loss on everything it is a row even without an answer.
            known += [one for one in turns if one.answers or (self._all and not known and one is turns[0])]
        for key, sequences in rows.items():
            if len(sequences) > 1:
                self._split += 1
                if self.one_each:
                    problems.add(
                        f"{first[key].where}: the model's chat template renders an earlier answer differently, so that the "
                        "answers of a pair cannot be learnt together; keep one assistant message in chosen and rejected"
                    )
                    continue
            yield key, [self._labeled(one, whole=self._all and one is sequences[0]) for one in sequences]

    def _labeled(self, turns: TurnIds, *, whole: bool) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        learnt = np.full(len(turns.ids), whole, np.bool_)
        for start, end in turns.ignored if whole else ():
            learnt[start:end] = False
        for start, end in turns.answers:
            learnt[start:end] = True
            self._ends[turns.ids[end - 1]] += 1
        return as_ids(turns.ids), learnt

    def _with_end(self, ids: list[int]) -> list[int]:
        end = self._tokenizer.eos_token_id
        return ids if end is None or ids[-1:] == [end] else [*ids, end]


def _messages_of(example: Example) -> list[Any]:
    return example.messages or [
        {"role": "user", "content": example.prompt},
        {"role": "assistant", "content": example.completion},
    ]


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

    def __init__(self, *, pairs: bool = False) -> None:
        self.count = 0
        self.first: list[str] = []
        self._pairs = pairs
        self._last: str | None = None

    def add(self, where: str) -> None:
        if self._pairs and where == self._last:
            return
        self.count, self._last = self.count + 1, where
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

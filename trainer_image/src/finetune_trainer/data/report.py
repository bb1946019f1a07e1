"""Report of a tokenized dataset, so that its author sees before training what is wrong with it."""

import hashlib
from collections.abc import Sequence
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from finetune_api.base import StatusModel
from finetune_trainer.data.rows import Format
from finetune_trainer.data.token_rows import Tokenized, TokenRows
from finetune_trainer.data.unused import CountedKey, in_words

BAR_WIDTH = 40
"""Characters of the longest bar of a printed histogram."""


class Bin(StatusModel):
    """Number of rows in a range of lengths."""

    up_to: Annotated[int, Field(description="upTo is the largest length in tokens of this bin.")]
    rows: Annotated[int, Field(description="rows no longer than upTo, and longer than the bin before.")]


class Lengths(StatusModel):
    """Tokens per row after truncation to maxLength."""

    shortest: Annotated[int, Field(description="shortest row.")]
    median: Annotated[int, Field(description="median row.")]
    p90: Annotated[int, Field(description="p90: 90 % of rows are no longer than this.")]
    longest: Annotated[int, Field(description="longest row.")]
    histogram: Annotated[list[Bin], Field(description="histogram in bins that double.")]


class LostRows(StatusModel):
    """Rows that are dropped or truncated."""

    rows: Annotated[int, Field(description="rows in number.")]
    reason: Annotated[str, Field(description="reason why.")]
    places: Annotated[list[str], Field(description="places of the first of them in the dataset.")]


class AnswerEnd(StatusModel):
    """A token that ends learnt answers."""

    token: Annotated[str, Field(description="token as the tokenizer writes it.")]
    id: Annotated[int, Field(description="id of the token.")]
    answers: Annotated[int, Field(description="answers that it ends.")]


class LostKey(StatusModel):
    """Key of rows that is not learnt."""

    path: Annotated[str, Field(description="path of the key in a row.")]
    rows: Annotated[int, Field(description="rows that have it.")]
    first: Annotated[str, Field(description="first is the place of the first such row.")]


class PartReport(StatusModel):
    """Figures of one set of rows; in the preference format a row is a pair, and lengths are those of its two answers."""

    rows: Annotated[int, Field(description="rows that are used.")]
    tokens: Annotated[int, Field(description="tokens of these rows.")]
    loss_tokens: Annotated[int, Field(description="lossTokens are the tokens that are learnt.")]
    loss_share: Annotated[float, Field(description="lossShare of all tokens.")]
    lengths: Annotated[Lengths, Field(description="lengths of rows.")]
    truncated: Annotated[LostRows, Field(description="truncated rows lose their end.")]
    dropped: Annotated[LostRows, Field(description="dropped rows have nothing left to learn.")]
    duplicate_rows: Annotated[
        int, Field(description="duplicateRows are equal to an earlier row, token by token.", ge=0)
    ]
    ends: Annotated[list[AnswerEnd], Field(description="ends are the tokens that end learnt answers.")] = Field(
        default_factory=list
    )
    unended_answers: Annotated[int, Field(description="unendedAnswers are learnt answers without an end token.")] = 0
    split_rows: Annotated[
        int,
        Field(
            description="splitRows became several rows, because the template renders earlier turns differently from the last one."
        ),
    ] = 0
    raw_rows: Annotated[
        int,
        Field(description="rawRows of prompt and completion hold the template's tokens, and were not rendered again."),
    ] = 0
    unused: Annotated[list[LostKey], Field(description="unused columns and keys, which no part of the format is.")] = (
        Field(default_factory=list)
    )
    unrendered: Annotated[
        list[LostKey], Field(description="unrendered are texts of rows that the model's chat template does not write.")
    ] = Field(default_factory=list)


class SourceReport(StatusModel):
    """Use of one of several sources."""

    source: Annotated[str, Field(description="source is the URI of the rows.")]
    digest: Annotated[str, Field(description="digest of the source's bytes.")]
    rows: Annotated[int, Field(description="rows that the source has.")]
    weight: Annotated[float, Field(description="weight: how often each row is used per epoch.")]
    used: Annotated[int, Field(description="used rows, held-out ones and copies included.")]
    left_out: Annotated[int, Field(description="leftOut rows: those that maxRows or weight does not use.")]


class DatasetReport(StatusModel):
    """Figures of training and held-out rows; the same data and model always give the same report."""

    format_version: Annotated[int, Field(description="formatVersion of this document.")] = 1
    digest: Annotated[str, Field(description="digest of the dataset's bytes.")]
    format: Annotated[str, Field(description="format of a row, as named or detected.")]
    max_length: Annotated[int, Field(description="maxLength in tokens that rows were cut to.")]
    loss_on: Annotated[str, Field(description="lossOn: which tokens carry loss.")]
    template: Annotated[
        str | None, Field(description="template names the chat template that writes conversations.")
    ] = None
    training: Annotated[PartReport, Field(description="training rows.")]
    evaluation: Annotated[PartReport | None, Field(description="evaluation rows, if any.")] = None
    overlap: Annotated[int, Field(description="overlap: evaluation rows that are training rows, too.", ge=0)] = 0
    left_out: Annotated[int, Field(description="leftOut rows: those that maxRows or weight does not use.", ge=0)] = 0
    sources: Annotated[list[SourceReport], Field(description="sources, if there are several.")] = Field(
        default_factory=list
    )

    @property
    def noun(self) -> str:
        """Name of a row in words."""
        return "pair" if self.format == "preference" else "row"


def build_report(
    training: Tokenized,
    evaluation: Tokenized | None,
    *,
    digest: str,
    row_format: Format,
    max_length: int,
    loss_on: str,
    copies: int = 0,
    left_out: int = 0,
    sources: Sequence[SourceReport] = (),
    template: str | None = None,
    unused: tuple[Sequence[CountedKey], Sequence[CountedKey]] = ((), ()),
) -> DatasetReport:
    """Measure tokenized rows.

    `copies` of them repeat a row because of its source's weight, which is no mistake. `unused` are the keys of training and
    evaluation rows that no part of the format is.
    """
    pairs = row_format == "preference"
    seen = _digests(training.rows, pairs=pairs)
    held_out = _digests(evaluation.rows, pairs=pairs) if evaluation else []
    return DatasetReport(
        digest=digest,
        format=row_format,
        max_length=max_length,
        loss_on=loss_on,
        template=template,
        training=_part(training, seen, max_length, unused[0], copies),
        evaluation=_part(evaluation, held_out, max_length, unused[1]) if evaluation else None,
        overlap=sum(digest in known for digest in held_out) if (known := set(seen)) else 0,
        left_out=left_out,
        sources=list(sources),
    )


def remarks(report: DatasetReport) -> list[str]:
    """List probable mistakes in sentences, each with a remedy."""
    found = []
    parts = [("training", report.training)] + ([("evaluation", report.evaluation)] if report.evaluation else [])
    noun = report.noun
    for name, part in parts:
        found += _remarks_on_keys(report, name, part, noun)
        for lost, remedy in (
            (part.truncated, "raise hyperparameters.maxLength or shorten them"),
            (part.dropped, "raise hyperparameters.maxLength, or shorten what comes before the answer"),
        ):
            if lost.rows:
                found.append(f"{lost.rows} {name} {noun}s {lost.reason} ({_shown(lost)}); {remedy}")
        if part.duplicate_rows:
            found.append(f"{part.duplicate_rows} of {part.rows} {name} {noun}s repeat an earlier {noun}; remove them")
        found += _remarks_on_turns(name, part)
    if report.evaluation and report.overlap:
        found.append(
            f"{report.overlap} of {report.evaluation.rows} evaluation {noun}s are training {noun}s, too, so that eval_loss "
            "flatters; remove them from one of the two"
        )
    return found


def _remarks_on_turns(name: str, part: PartReport) -> list[str]:
    found = []
    if part.unended_answers:
        learnt = part.unended_answers + sum(end.answers for end in part.ends)
        found.append(
            f"{part.unended_answers} of {learnt} {name} answers end without a token that could stop the model, so that it learns to "
            "continue until max_tokens; set chat.template to one that writes the end token after each answer, or let requests "
            "send a stop text"
        )
    if part.raw_rows:
        found.append(
            f"{part.raw_rows} {name} rows hold the chat template's tokens in their text and are learnt as they are; ask for them at "
            "/v1/completions, or remove the tokens so that the template is applied"
        )
    return found


def _remarks_on_keys(report: DatasetReport, name: str, part: PartReport, noun: str) -> list[str]:
    found = []
    if part.unused:
        found.append(
            f"not used of the {name} {noun}s: {in_words(_counted(part.unused), noun)}; remove them, or map them with "
            "dataset.columns if they are to be learnt"
        )
    if part.unrendered:
        found.append(
            f"{report.template} leaves out texts of the {name} {noun}s: "
            f"{in_words(_counted(part.unrendered), noun)}; use a model whose template writes them, or remove them"
        )
    return found


def _counted(keys: Sequence[LostKey]) -> list[CountedKey]:
    return [CountedKey(key.path, key.rows, key.first) for key in keys]


def render_report(report: DatasetReport) -> str:
    """Format the report with its histogram for a terminal."""
    noun = f"{report.noun}s"
    lines = [
        f"dataset:    {report.training.rows} training {noun}, {report.evaluation.rows if report.evaluation else 0} evaluation "
        f"{noun}, format {report.format}, {report.digest}"
    ]
    lines += [
        f"source:     {use.source}: {use.rows} rows, {use.used} used, weight {use.weight:g}, {use.left_out} left out, {use.digest}"
        for use in report.sources
    ]
    if report.left_out:
        lines.append(f"left out:   {report.left_out} rows, by maxRows or weight")
    parts = [("training", report.training)] + ([("evaluation", report.evaluation)] if report.evaluation else [])
    for name, part in parts:
        lengths = part.lengths
        lines += [
            f"{name + ':':<12}{part.rows} {noun}, {part.tokens} tokens, {part.loss_tokens} with loss "
            f"({part.loss_share:.0%}, lossOn {report.loss_on})",
            f"            tokens per row: shortest {lengths.shortest}, median {lengths.median}, p90 {lengths.p90}, "
            f"longest {lengths.longest}; maxLength {report.max_length}",
            *_bars(lengths.histogram),
        ]
        if part.ends:
            ends = ", ".join(f"{end.token} ({end.answers})" for end in part.ends)
            lines.append(f"            answers end with {ends}")
        if part.split_rows:
            lines.append(
                f"            {part.split_rows} rows were split, so that each answer is learnt as it will be asked"
            )
    return "\n".join(lines)


def _digests(rows: TokenRows, *, pairs: bool) -> list[bytes]:
    """Return a digest for each row, or for each pair."""
    digests = [hashlib.blake2b(content, digest_size=16).digest() for content in rows.contents()]
    return [one + other for one, other in zip(digests[::2], digests[1::2], strict=True)] if pairs else digests


def _part(
    tokenized: Tokenized, digests: Sequence[bytes], max_length: int, unused: Sequence[CountedKey], copies: int = 0
) -> PartReport:
    return PartReport(
        rows=len(digests),
        tokens=tokenized.tokens,
        loss_tokens=tokenized.loss_tokens,
        loss_share=round(tokenized.loss_tokens / tokenized.tokens, 4),
        lengths=_lengths(tokenized.rows.lengths),
        truncated=LostRows(
            rows=tokenized.truncated,
            reason=f"are longer than {max_length} tokens and lose their end",
            places=list(tokenized.truncated_places),
        ),
        dropped=LostRows(
            rows=tokenized.dropped,
            reason=f"have no token with loss within {max_length} tokens and are left out",
            places=list(tokenized.dropped_places),
        ),
        duplicate_rows=max(0, len(digests) - len(set(digests)) - copies),
        ends=[AnswerEnd(token=end.text, id=end.id, answers=end.answers) for end in tokenized.turns.ends],
        unended_answers=tokenized.turns.unended,
        split_rows=tokenized.turns.split_rows,
        raw_rows=tokenized.turns.raw_rows,
        unused=_lost(unused),
        unrendered=_lost(tokenized.unrendered),
    )


def _lost(keys: Sequence[CountedKey]) -> list[LostKey]:
    return [LostKey(path=key.path, rows=key.rows, first=key.first) for key in keys]


def _lengths(lengths: NDArray[np.int64]) -> Lengths:
    ordered = np.sort(lengths)
    edges = [16]
    while edges[-1] < ordered[-1]:
        edges.append(edges[-1] * 2)
    counts = np.diff(np.searchsorted(ordered, edges, side="right"), prepend=0)
    return Lengths(
        shortest=int(ordered[0]),
        median=int(ordered[(len(ordered) - 1) // 2]),
        p90=int(ordered[int((len(ordered) - 1) * 0.9)]),
        longest=int(ordered[-1]),
        histogram=[Bin(up_to=edge, rows=int(count)) for edge, count in zip(edges, counts, strict=True)],
    )


def _bars(histogram: Sequence[Bin]) -> list[str]:
    most = max(one.rows for one in histogram)
    first = next(i for i, one in enumerate(histogram) if one.rows)
    return [
        f"            up to {one.up_to:>6}: {one.rows:>8} {'#' * round(BAR_WIDTH * one.rows / most)}".rstrip()
        for one in histogram[first:]
    ]


def _shown(lost: LostRows) -> str:
    return ", ".join(lost.places) + (", …" if lost.rows > len(lost.places) else "")

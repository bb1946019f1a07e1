"""Packing: the rows of a micro-batch as one flat sequence, without padding, and with each shared prefix once.

The rows form a radix tree. A node is a run of tokens that attends to itself, causally, and to its ancestors. A row is a path
from the root, so its hidden states and gradients are those of the row on its own: a prefix that two rows share (a system
prompt, a few-shot header, the prompt of a preference pair) has the same context in both, and accumulates the gradients of
both, as if it had been computed twice.

Padding-free batches: Hugging Face's DataCollatorWithFlattening, arXiv 2407.09105. Prefix sharing is to training what prefix
caching is to inference (compare arXiv 2406.00888, "Prefix Grouper" arXiv 2506.05433). Nothing is approximated.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from finetune_trainer.data import IGNORED, TokenRow
from finetune_trainer.kernels.attention_layout import AttentionLayout, Block

MIN_SHARED_TOKENS: Final = 8
"""Shortest prefix, in tokens, shared on a CPU. A node costs one more attention call per layer, as much as a few tokens."""
GPU_MIN_SHARED_TOKENS: Final = 64
"""Shortest prefix, in tokens, shared on an accelerator, which computes many more tokens in the time of a call."""

Ids = npt.NDArray[np.int64]


@dataclass
class Node:
    """A run of tokens that follows the same tokens in all of `rows`."""

    ids: Ids
    start: int
    """Position of the first token in the flat sequence."""
    ancestors: tuple["Node", ...]
    rows: list[int]
    """Indices of the rows whose path includes this node."""

    @property
    def positions(self) -> Ids:
        """Position of each token in the flat sequence."""
        return np.arange(self.start, self.start + len(self.ids))

    @property
    def context(self) -> Ids:
        """Flat positions of the tokens of all ancestors."""
        return np.concatenate([np.empty(0, np.int64), *(node.positions for node in self.ancestors)])


def build_tree(rows: Sequence[Ids], min_shared: int = MIN_SHARED_TOKENS) -> list[Node]:
    """Build the radix tree, and return its nodes in the order of the flat sequence. `min_shared=0` shares nothing."""
    order = sorted(range(len(rows)), key=lambda i: (rows[i].astype(">u4").tobytes(), i))
    nodes: list[Node] = []

    def add(group: list[int], depth: int, end: int, ancestors: tuple[Node, ...]) -> Node:
        start = nodes[-1].start + len(nodes[-1].ids) if nodes else 0
        nodes.append(Node(rows[group[0]][depth:end], start, ancestors, group))
        return nodes[-1]

    def grow(group: list[int], depth: int, ancestors: tuple[Node, ...]) -> None:
        for part in _split(rows, group, depth + min_shared if min_shared else None):
            if len(part) == 1:
                if len(rows[part[0]]) > depth:
                    add(part, depth, len(rows[part[0]]), ancestors)
                continue
            # Rows are in lexicographic order, so all share the prefix that the first and the last share.
            shared = _common_length(rows[part[0]], rows[part[-1]])
            node = add(part, depth, shared, ancestors)
            grow(part, shared, (*ancestors, node))

    grow(order, 0, ())
    return nodes


def _split(rows: Sequence[Ids], group: list[int], min_common: int | None) -> Iterator[list[int]]:
    """Cut a sorted group wherever two neighbors share fewer than `min_common` tokens; everywhere if it is None."""
    part = group[:1]
    for before, row in pairwise(group):
        if min_common is None or _common_length(rows[before], rows[row]) < min_common:
            yield part
            part = []
        part.append(row)
    if part:
        yield part


def _common_length(a: Ids, b: Ids) -> int:
    size = min(len(a), len(b))
    different = np.flatnonzero(a[:size] != b[:size])
    return int(different[0]) if len(different) else size


class PackedCollator:
    """Collates a micro-batch into the keyword arguments of the forward of a model inside `attention.packed_attention`.

    With T tokens in the tree and N predicted tokens with loss: `input_ids` and `position_ids` are [1, T], `logits_to_keep` is
    [N] (the predicting positions; one that predicts for several rows occurs several times), `shift_labels` is [1, N].
    """

    def __init__(self, min_shared: int = MIN_SHARED_TOKENS) -> None:
        self._min_shared = min_shared

    def count_tokens(self, rows: Sequence[TokenRow]) -> int:
        """Count the tokens of a micro-batch: T, or N if that is more (shared tokens with loss)."""
        tokens = sum(len(node.ids) for node in self._tree(rows))
        return max(tokens, sum(row.loss_tokens for row in rows))

    def longest_own(self, rows: Sequence[TokenRow]) -> int:
        """Return the largest number of tokens that one of these rows shares with no other."""
        return max((len(node.ids) for node in self._tree(rows) if len(node.rows) == 1), default=0)

    def __call__(self, rows: Sequence[TokenRow]) -> dict[str, Any]:
        """Build the tree of these rows and collate it."""
        import torch

        nodes = self._tree(rows)
        places = _places_of_rows(len(rows), nodes)
        positions, targets = _predictions(rows, places)
        flat = np.concatenate([node.ids for node in nodes])
        depths = np.concatenate([sum(len(a.ids) for a in node.ancestors) + np.arange(len(node.ids)) for node in nodes])
        labels = torch.from_numpy(targets)[None]
        return {
            "input_ids": torch.from_numpy(flat)[None],
            "position_ids": torch.from_numpy(depths)[None],
            "logits_to_keep": torch.from_numpy(positions),
            "labels": labels,
            "shift_labels": labels,
            "layout": AttentionLayout.of(
                [Block(node.positions, node.context) for node in nodes],
                row_tokens=sum(len(row.input_ids) for row in rows),
            ),
        }

    def _tree(self, rows: Sequence[TokenRow]) -> list[Node]:
        return build_tree([_needed(row) for row in rows], self._min_shared)


def _needed(row: TokenRow) -> Ids:
    """Return the tokens up to the one that predicts the last token with loss; the rest cannot affect the loss."""
    learnt = np.flatnonzero(np.asarray(row.labels)[1:] != IGNORED)
    end = int(learnt[-1]) + 1 if len(learnt) else 1
    return np.asarray(row.input_ids[:end], dtype=np.int64)


def _places_of_rows(count: int, nodes: Sequence[Node]) -> list[Ids]:
    """Return the flat positions of each row's needed tokens. Parents come first, so appending keeps the order of a row."""
    paths: list[list[Ids]] = [[] for _ in range(count)]
    for node in nodes:
        for row in node.rows:
            paths[row].append(node.positions)
    return [np.concatenate(path) for path in paths]


def _predictions(rows: Sequence[TokenRow], places: Sequence[Ids]) -> tuple[Ids, Ids]:
    """Return the positions whose logits are needed, and the token that each predicts."""
    positions, targets = [], []
    for row, place in zip(rows, places, strict=True):
        predicted = np.asarray(row.labels, dtype=np.int64)[1 : len(place) + 1]
        wanted = predicted != IGNORED
        positions.append(place[: len(predicted)][wanted])
        targets.append(predicted[wanted])
    return np.concatenate(positions), np.concatenate(targets)

"""Objectives of training: reference answers (supervised), or the better of two answers (DPO).

This module imports torch and transformers, so it is imported only when training is about to start.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from finetune_api.training import TrainingConfig
from finetune_api.v1alpha1 import Dpo
from finetune_trainer.batches.layout import BatchLayout
from finetune_trainer.data.pairs import PreferencePairs
from finetune_trainer.dataset import PreparedDataset
from finetune_trainer.evaluation.evaluation import HeldOut, HeldOutRows
from finetune_trainer.loop.dpo import HeldOutPairs, PairLayout, PreferenceTrainer, Reference
from finetune_trainer.loop.step_trainer import StepTrainer
from finetune_trainer.model.continuation import load_tensors


class _MakeHeldOut(Protocol):
    def __call__(self, *, on_gpu: bool) -> HeldOut | None: ...


@dataclass(frozen=True)
class Objective:
    """An objective: its rows, their layout, and factories of its Trainer and of its held-out data."""

    rows: Sequence[Any]
    """Items that a step is made of: rows, or pairs of them."""
    layout: Any
    """`BatchLayout` of such items."""
    make_trainer: Callable[..., StepTrainer]
    make_held_out: _MakeHeldOut
    """Factory of the held-out data; returns None for a dataset without any."""


def choose_objective(config: TrainingConfig, dataset: PreparedDataset, layout: BatchLayout) -> Objective:
    """Return the objective of a configuration, for rows in `layout`."""
    return _preference(config, config.dpo, dataset, layout) if config.dpo else _supervised(config, dataset, layout)


def _supervised(config: TrainingConfig, dataset: PreparedDataset, layout: BatchLayout) -> Objective:
    def make_held_out(*, on_gpu: bool) -> HeldOut | None:
        metrics = config.evaluation_settings.metrics
        return HeldOutRows(dataset.evaluation, layout, on_gpu=on_gpu, metrics=metrics) if dataset.evaluation else None

    return Objective(dataset.training.rows, layout, StepTrainer, make_held_out)


def _preference(config: TrainingConfig, dpo: Dpo, dataset: PreparedDataset, layout: BatchLayout) -> Objective:
    pair_layout = PairLayout(layout)
    reference = Reference(load_tensors(config.initial_adapter) if config.initial_adapter else None)

    def make_held_out(*, on_gpu: bool) -> HeldOut | None:
        if dataset.evaluation is None:
            return None
        return HeldOutPairs(PreferencePairs(dataset.evaluation.rows), pair_layout, dpo.beta, reference, on_gpu=on_gpu)

    pairs = PreferencePairs(dataset.training.rows)
    make_trainer = partial(PreferenceTrainer, beta=dpo.beta, reference=reference)
    return Objective(pairs, pair_layout, make_trainer, make_held_out)

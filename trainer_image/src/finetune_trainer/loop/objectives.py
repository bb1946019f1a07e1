"""What is learnt from which rows: wanted answers (supervised), or which of two answers is better (DPO).

Like `trainer`, this module is imported only once training is about to start.
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
from finetune_trainer.loop.dpo import HeldOutPairs, PairPasses, PreferenceTrainer, Reference
from finetune_trainer.loop.step_trainer import StepTrainer
from finetune_trainer.model.continuation import load_tensors


class _HeldOutOf(Protocol):
    def __call__(self, *, on_gpu: bool) -> HeldOut | None: ...


@dataclass(frozen=True)
class Objective:
    """What training needs to know of its objective."""

    rows: Sequence[Any]
    """What the steps are made of: rows, or pairs of them."""
    passes: Any
    """`BatchLayout` of such rows."""
    trainer: Callable[..., StepTrainer]
    held_out: _HeldOutOf
    """Makes what measures the held-out part; None without one."""


def choose_objective(config: TrainingConfig, dataset: PreparedDataset, passes: BatchLayout) -> Objective:
    """The objective of a configuration, over rows that go through the model by `passes`."""
    return _preference(config, config.dpo, dataset, passes) if config.dpo else _supervised(config, dataset, passes)


def _supervised(config: TrainingConfig, dataset: PreparedDataset, passes: BatchLayout) -> Objective:
    def held_out(*, on_gpu: bool) -> HeldOut | None:
        metrics = config.evaluation_settings.metrics
        return HeldOutRows(dataset.evaluation, passes, on_gpu=on_gpu, metrics=metrics) if dataset.evaluation else None

    return Objective(dataset.training.rows, passes, StepTrainer, held_out)


def _preference(config: TrainingConfig, dpo: Dpo, dataset: PreparedDataset, passes: BatchLayout) -> Objective:
    pair_passes = PairPasses(passes)
    reference = Reference(load_tensors(config.initial_adapter) if config.initial_adapter else None)

    def held_out(*, on_gpu: bool) -> HeldOut | None:
        if dataset.evaluation is None:
            return None
        return HeldOutPairs(PreferencePairs(dataset.evaluation.rows), pair_passes, dpo.beta, reference, on_gpu=on_gpu)

    pairs = PreferencePairs(dataset.training.rows)
    return Objective(pairs, pair_passes, partial(PreferenceTrainer, beta=dpo.beta, reference=reference), held_out)

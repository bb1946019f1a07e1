"""Assembly of a training: the Trainer and its collaborators are built and connected here, and run once.

Only `training` imports this module, and only when training is about to start, because it imports torch and transformers.
"""

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from finetune_api.outcome import MicroBatching
from finetune_api.training import TrainingConfig
from finetune_trainer.batches.batching import StepSampler, choose_micro_batch_size
from finetune_trainer.batches.layout import BatchLayout
from finetune_trainer.dataset import PreparedDataset
from finetune_trainer.evaluation.evaluation import BestAdapter, EvaluationCallback, eval_loss_curve
from finetune_trainer.loop.callbacks import CheckpointCallback, ProgressCallback, StopCallback
from finetune_trainer.loop.checkpoints import CheckpointSaver
from finetune_trainer.loop.divergence import DivergenceCallback
from finetune_trainer.loop.objectives import Objective, choose_objective
from finetune_trainer.loop.position import TrainingPosition
from finetune_trainer.loop.step_trainer import StepTrainer, remove_printer, training_arguments
from finetune_trainer.memory.out_of_memory import MicroBatchSizes, host_memory_limit
from finetune_trainer.memory.plan import MemoryPlan, plan_for_device
from finetune_trainer.model.loaded import BaseModel
from finetune_trainer.reporting.progress import Reporter
from finetune_trainer.reporting.run_record import TrainingResult, make_manifest
from finetune_trainer.runtime.interruption import StopSignal
from finetune_trainer.store.run_store import Committed, RunStore

if TYPE_CHECKING:
    from peft import PeftModel

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class AssembledTraining:
    """A Trainer with its collaborators, ready to run once."""

    model: "PeftModel"
    layout: BatchLayout
    trainer: StepTrainer
    saver: CheckpointSaver
    sizes: MicroBatchSizes
    best: BestAdapter
    position: TrainingPosition
    memory: MemoryPlan

    def run(self, checkpoint: Committed | None, stop: StopSignal) -> TrainingResult:
        """Train from `checkpoint`, or from the start without one, and leave the best adapter in the model.

        Raises TrainingError (Interrupted, LossDiverged, or out of memory).
        """
        if checkpoint:
            self.position.step = self.position.checkpoint_step = checkpoint.manifest.step
            self.best.load(checkpoint.path)
        logger.info(
            "training starts batch_size=%d micro_batch_size=%d from_step=%d",
            self.trainer.args.per_device_train_batch_size,
            self.sizes.current.micro_batch_size,
            self.position.step,
        )
        started = time.monotonic()
        with self.saver, self.layout.applied(self.model):
            self.trainer.train(resume_from_checkpoint=str(checkpoint.path) if checkpoint else None)
        state = self.trainer.state
        if state.global_step < state.max_steps:
            stop.check(f"Stopped at step {state.global_step} of {state.max_steps}; a checkpoint was committed.")
        self._log_end(time.monotonic() - started)
        if self.best.tensors:
            self.best.restore(self.model)
        return TrainingResult(
            step=state.global_step,
            losses=[(entry["step"], entry["loss"]) for entry in state.log_history if "loss" in entry],
            eval_losses=eval_loss_curve(state.log_history),
            best_step=state.best_global_step,
            memory=self.memory,
            micro_batching=self.sizes.current,
            reductions=self.sizes.reductions,
        )

    def _log_end(self, seconds: float) -> None:
        logger.info(
            "training ended step=%d seconds=%.1f tokens=%d checkpoints=%d blocked_seconds=%.3f writing_seconds=%.3f",
            self.trainer.state.global_step,
            seconds,
            self.position.trained_tokens,
            self.saver.saved,
            self.saver.blocked_seconds,
            self.saver.writing_seconds,
        )


def assemble_training(
    config: TrainingConfig,
    model: "PeftModel",
    base: BaseModel,
    dataset: PreparedDataset,
    layout: BatchLayout,
    *,
    store: RunStore,
    reporter: Reporter,
    stop: StopSignal,
    position: TrainingPosition,
) -> AssembledTraining:
    """Choose objective and micro-batch size, plan memory, and connect the Trainer with its callbacks.

    Training keeps `position` up to date. Raises TrainingError (SpecInvalid) for settings that the model does not support.
    """
    hyper = config.hyperparameters
    objective = choose_objective(config, dataset, layout)
    rows, layout = objective.rows, objective.layout
    micro_batch_size = choose_micro_batch_size(
        layout.row_tokens(rows, hyper.batch_size), hyper.batch_size, hyper.micro_batch_size, on_gpu=base.on_gpu
    )
    memory = plan_for_device(config, model, base, dataset, micro_batch_size, packed=layout.name == "packed")
    planned = MicroBatching(micro_batch_size=micro_batch_size, gradient_checkpointing=memory.gradient_checkpointing)
    sizes = MicroBatchSizes(planned, hyper.gradient_checkpointing, model, limit=host_memory_limit())
    best = BestAdapter()
    saver = CheckpointSaver(store, position, make_manifest(config, base, 0), config.checkpoint.keep, best)
    trainer = objective.make_trainer(
        sampler=StepSampler(layout.order(rows), hyper.batch_size, hyper.seed, shuffle=config.dataset.shuffle),
        saver=saver,
        collate=layout.collate,
        sizes=sizes,
        model=model,
        args=training_arguments(config, base, store.checkpoint_staging),
        train_dataset=rows,
        callbacks=[
            sizes,
            DivergenceCallback(),
            *_evaluation_callbacks(config, objective, best, stop, on_gpu=base.on_gpu),
            ProgressCallback(reporter, position, sizes),
            StopCallback(stop),
            CheckpointCallback(saver, config.checkpoint.every_minutes * 60),
        ],
    )
    remove_printer(trainer)
    return AssembledTraining(model, layout, trainer, saver, sizes, best, position, memory)


def _evaluation_callbacks(
    config: TrainingConfig, objective: Objective, best: BestAdapter, stop: StopSignal, *, on_gpu: bool
) -> list[EvaluationCallback]:
    settings = config.evaluation_settings
    if not settings.eval_steps or not (held_out := objective.make_held_out(on_gpu=on_gpu)):
        return []
    return [EvaluationCallback(held_out, best, settings, stop)]

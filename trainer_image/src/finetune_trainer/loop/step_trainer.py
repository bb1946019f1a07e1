"""Subclass of transformers.Trainer with our order of rows, micro-batches and checkpoints.

This module imports torch and transformers, so only `loop` imports it, and only when training is about to start.
"""

import contextlib
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainingArguments

from finetune_api.training import TrainingConfig
from finetune_api.v1alpha1 import DEFAULT_EPOCHS
from finetune_trainer.batches.batching import StepSampler
from finetune_trainer.errors import is_out_of_memory
from finetune_trainer.loop.checkpoints import CheckpointSaver, load_random_state
from finetune_trainer.memory.out_of_memory import MicroBatchSizes, RandomState, allocation_limit, release_memory
from finetune_trainer.model.loaded import BaseModel
from finetune_trainer.runtime import distributed


def training_arguments(config: TrainingConfig, base: BaseModel, folder: Path) -> TrainingArguments:
    """Translate a configuration for transformers; `folder` is removed, and nothing is written there."""
    hyper = config.hyperparameters
    shutil.rmtree(folder, ignore_errors=True)
    return TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=hyper.epochs or DEFAULT_EPOCHS,
        max_steps=hyper.max_steps or -1,
        # The Trainer's batch is a whole step: StepTrainer cuts it into micro-batches.
        per_device_train_batch_size=hyper.batch_size,
        learning_rate=hyper.learning_rate,
        lr_scheduler_type="constant_with_warmup" if hyper.schedule == "constant" else hyper.schedule,
        # Below 1, transformers reads this as a share of all steps.
        warmup_steps=hyper.warmup_ratio,
        weight_decay=hyper.weight_decay,
        bf16=base.dtype == "bfloat16",
        use_cpu=not base.on_gpu,
        # Each rank draws its own dropout. The adapter is initialized by now, alike in all ranks.
        seed=hyper.seed + distributed.rank(),
        logging_steps=1,
        # The Trainer would hide a NaN loss from divergence.DivergenceCallback.
        logging_nan_inf_filter=False,
        include_num_input_tokens_seen="all",
        # EvaluationCallback evaluates; ProgressCallback reads this number to thin the log history.
        eval_steps=config.evaluation_settings.eval_steps,
        save_strategy="steps",
        save_steps=config.checkpoint.every_steps,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        # Batches are rows; each micro-batch becomes tensors on its own.
        dataloader_pin_memory=False,
    )


class StepTrainer(Trainer):  # type: ignore[misc] # transformers is untyped
    """A Trainer that takes its steps from `StepSampler`, its micro-batches from `MicroBatchSizes`, and saves by `CheckpointSaver`.

    The Trainer's batch is the list of a step's rows. A step that memory does not suffice for is repeated from its start
    with smaller micro-batches. No step follows the last one of a resumed run.
    """

    def __init__(
        self,
        *,
        sampler: StepSampler,
        saver: CheckpointSaver,
        collate: Callable[[Sequence[Any]], dict[str, Any]],
        sizes: MicroBatchSizes,
        **kwargs: Any,
    ) -> None:
        super().__init__(data_collator=list, **kwargs)
        self._sampler = sampler
        self._saver = saver
        self._collate = collate
        self._sizes = sizes

    def count_items(self, rows: Sequence[Any]) -> int:
        """Count the items that the loss of a step is a mean over: tokens with loss."""
        return sum(row.loss_tokens for row in rows)

    def count_tokens(self, rows: Sequence[Any]) -> int:
        """Count the tokens of rows; a prefix that rows share counts in each of them."""
        return sum(len(row.input_ids) for row in rows)

    def training_step(
        self, model: torch.nn.Module, inputs: Sequence[Any], num_items_in_batch: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Compute the gradients of a step's rows, and return its loss.

        Of several ranks, each computes its shard of the rows; gradients and losses are then all-reduced. Raises
        TrainingError if memory does not suffice for the smallest micro-batches.
        """
        random_state = RandomState.now()
        rows = distributed.shard_for_rank(inputs, [self.count_tokens([row]) for row in inputs])
        while (loss := self._try_step(model, rows, num_items_in_batch)) is None:
            model.zero_grad()
            release_memory()
            random_state.restore()
        distributed.all_reduce_gradients(
            loss, [parameter for parameter in model.parameters() if parameter.requires_grad]
        )
        return loss

    def _try_step(self, model: torch.nn.Module, rows: Sequence[Any], items: torch.Tensor | None) -> torch.Tensor | None:
        """Return the loss of a step; None if memory was exhausted and the next try will use less."""
        try:
            with allocation_limit(self._sizes.limit):
                return self._accumulate(model, rows, items)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self._sizes.shrink(self.state, error)
        return None

    def _accumulate(self, model: torch.nn.Module, rows: Sequence[Any], items: torch.Tensor | None) -> torch.Tensor:
        size = self._sizes.current.micro_batch_size
        loss = torch.tensor(0.0, device=self.args.device)
        for start in range(0, len(rows), size):
            is_last = start + size >= len(rows)
            with contextlib.nullcontext() if is_last else self.accelerator.no_sync(model):
                loss += super().training_step(model, self._collate(rows[start : start + size]), items)
        return loss

    def _get_num_items_in_batch(self, batch_samples: list[Sequence[Any]], device: torch.device) -> torch.Tensor:
        """Count items of rows; the base class counts labels of collated batches."""
        return torch.tensor(sum(self.count_items(rows) for rows in batch_samples), device=device)

    def _track_num_input_tokens(self, inputs: Sequence[Any]) -> None:
        self.state.num_input_tokens_seen += self.count_tokens(inputs)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Load this rank's random state; transformers finds that of rank 0 by its own file name."""
        if checkpoint and distributed.rank():
            load_random_state(Path(checkpoint), distributed.rank())
        else:
            super()._load_rng_state(checkpoint)

    def _get_train_sampler(self, train_dataset: Any = None) -> StepSampler:
        return self._sampler

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Train an epoch, unless a checkpoint of the last step was resumed: the base class would train one step more."""
        if self.state.global_step >= self.state.max_steps or self.control.should_training_stop:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """Save by `CheckpointSaver`; the base class writes in the training thread, into the folder that it resumes from."""
        self._saver.save(self)


def remove_printer(trainer: Trainer) -> None:
    """Remove the callback that prints each log entry as a dict: `callbacks.ProgressCallback` reports them."""
    from transformers.trainer_callback import PrinterCallback

    trainer.remove_callback(PrinterCallback)

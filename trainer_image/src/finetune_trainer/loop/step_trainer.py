"""transformers.Trainer, adapted: our order of rows, and callbacks for progress, stopping and checkpoints.

This module imports transformers at its top, so only `training` imports it, and only once training is about to start.
"""

import contextlib
import logging
import math
import resource
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from finetune_api.outcome import Progress
from finetune_api.training import TrainingConfig
from finetune_api.v1alpha1 import DEFAULT_EPOCHS
from finetune_trainer.batches.batching import StepSampler
from finetune_trainer.errors import is_out_of_memory
from finetune_trainer.loop.checkpoints import CheckpointSaver, load_random_state
from finetune_trainer.loop.position import TrainingPosition
from finetune_trainer.memory.out_of_memory import MicroBatchSizes, RandomState, memory_refused_beyond, release_memory
from finetune_trainer.model.loaded import BaseModel
from finetune_trainer.reporting.progress import Reporter
from finetune_trainer.runtime import distributed
from finetune_trainer.runtime.interruption import StopSignal

logger = logging.getLogger(__name__)

CURVE_POINTS: Final = 300
"""Entries of the Trainer's log history that stay, evenly spread: it is written into every checkpoint, and would grow with each step."""
RECENT_ENTRIES: Final = 20
"""Newest entries, all of which stay until newer ones come."""


def training_arguments(config: TrainingConfig, base: BaseModel, folder: Path) -> TrainingArguments:
    """What transformers is told; `folder` is emptied, and nothing is written there."""
    hyper = config.hyperparameters
    shutil.rmtree(folder, ignore_errors=True)
    return TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=hyper.epochs or DEFAULT_EPOCHS,
        max_steps=hyper.max_steps or -1,
        # A batch of the Trainer's is the whole step: StepTrainer cuts it into passes.
        per_device_train_batch_size=hyper.batch_size,
        learning_rate=hyper.learning_rate,
        lr_scheduler_type="constant_with_warmup" if hyper.schedule == "constant" else hyper.schedule,
        # A share of all steps as long as it is below 1.
        warmup_steps=hyper.warmup_ratio,
        weight_decay=hyper.weight_decay,
        bf16=base.dtype == "bfloat16",
        use_cpu=not base.on_gpu,
        # Dropout is another one in each rank; the same adapter is in all of them by now.
        seed=hyper.seed + distributed.rank(),
        logging_steps=1,
        # The Trainer would hide a loss that is no number from divergence.DivergenceCallback.
        logging_nan_inf_filter=False,
        include_num_input_tokens_seen="all",
        # Evaluation is EvaluationCallback's; the number thins the log.
        eval_steps=config.evaluation_settings.eval_steps,
        save_strategy="steps",
        save_steps=config.checkpoint.every_steps,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        # Batches are rows, which become tensors pass by pass.
        dataloader_pin_memory=False,
    )


def thin_history(history: list[dict[str, float]], max_steps: int, eval_steps: int = 1) -> None:
    """Leave evenly spread entries and the newest, chosen by step alone: a resumed run ends with the same ones.

    Evaluations, of which there is one every `eval_steps`, are spread for themselves.
    """
    stride = max(1, math.ceil(max_steps / CURVE_POINTS))
    eval_stride = max(1, math.ceil(max_steps / eval_steps / CURVE_POINTS)) * eval_steps
    history[:-RECENT_ENTRIES] = [
        entry
        for entry in history[:-RECENT_ENTRIES]
        if entry["step"] % (eval_stride if "eval_loss" in entry else stride) == 0
    ]


class StepTrainer(Trainer):  # type: ignore[misc] # transformers is untyped
    """A Trainer whose steps are made by `StepSampler`, saved by `CheckpointSaver`, and none after the last one.

    What it takes for a batch is the list of a step's rows. They go through the model in passes of the size that `MicroBatchSizes`
    says, and a step that memory does not suffice for is taken again from its start.
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
        """What the loss of a step is a mean over: tokens with loss."""
        return sum(row.loss_tokens for row in rows)

    def count_tokens(self, rows: Sequence[Any]) -> int:
        """Tokens of rows, each counted as often as it is in one."""
        return sum(len(row.input_ids) for row in rows)

    def training_step(self, model: Any, inputs: Sequence[Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """Gradients of a step's rows, and its loss. Raises TrainingError if memory does not suffice for the smallest passes.

        Where several ranks share the step, each takes its part of the rows, and then both are added up.
        """
        random_state = RandomState.now()
        rows = distributed.shard_for_rank(inputs, [self.count_tokens([row]) for row in inputs])
        while (loss := self._take(model, rows, num_items_in_batch)) is None:
            model.zero_grad()
            release_memory()
            random_state.restore()
        distributed.all_reduce_gradients(
            loss, [parameter for parameter in model.parameters() if parameter.requires_grad]
        )
        return loss

    def _take(self, model: Any, rows: Sequence[Any], items: Any) -> torch.Tensor | None:
        """The loss of a step; None if memory ran out and the next try will be with less."""
        try:
            with memory_refused_beyond(self._sizes.limit):
                return self._accumulate(model, rows, items)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self._sizes.shrink(self.state, error)
        return None

    def _accumulate(self, model: Any, rows: Sequence[Any], items: Any) -> torch.Tensor:
        size = self._sizes.now.micro_batch_size
        loss = torch.tensor(0.0, device=self.args.device)
        for start in range(0, len(rows), size):
            is_last = start + size >= len(rows)
            with contextlib.nullcontext() if is_last else self.accelerator.no_sync(model):
                loss += super().training_step(model, self._collate(rows[start : start + size]), items)
        return loss

    def _get_num_items_in_batch(self, batch_samples: list[Sequence[Any]], device: Any) -> torch.Tensor:
        """Stock counts labels of collated batches."""
        return torch.tensor(sum(self.count_items(rows) for rows in batch_samples), device=device)

    def _track_num_input_tokens(self, inputs: Sequence[Any]) -> None:
        self.state.num_input_tokens_seen += self.count_tokens(inputs)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """The first rank's is where transformers looks for it."""
        if checkpoint and distributed.rank():
            load_random_state(Path(checkpoint), distributed.rank())
        else:
            super()._load_rng_state(checkpoint)

    def _get_train_sampler(self, train_dataset: Any = None) -> StepSampler:
        return self._sampler

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Train an epoch, unless a checkpoint of the last step was resumed: stock would train one step more."""
        if self.state.global_step >= self.state.max_steps or self.control.should_training_stop:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Stock writes in the training thread, and into the very folder that it would resume from."""
        self._saver.save(self)


class _Callback(TrainerCallback):  # type: ignore[misc] # transformers is untyped
    """Base of the callbacks below."""


class ProgressCallback(_Callback):
    """Tells a reporter about each step."""

    def __init__(self, reporter: Reporter, reached: TrainingPosition, sizes: MicroBatchSizes) -> None:
        self._reporter = reporter
        self._reached = reached
        self._sizes = sizes
        self._start_step = 0
        self._start_tokens = 0
        self._start_time = 0.0

    def on_train_begin(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        """Remember where this attempt starts."""
        self._start_step = state.global_step
        self._start_tokens = state.num_input_tokens_seen
        self._start_time = time.monotonic()
        self._reached.step = state.global_step

    def on_log(self, _args: Any, state: Any, _control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        """Report a step; the Trainer logs each one."""
        if not logs or "loss" not in logs:
            return
        seconds = max(time.monotonic() - self._start_time, 1e-6)
        steps = state.global_step - self._start_step
        logger.debug("step finished step=%d", state.global_step)
        self._reached.step = state.global_step
        self._reached.trained_tokens = state.num_input_tokens_seen - self._start_tokens
        self._reporter.report(
            Progress(
                step=state.global_step,
                total_steps=state.max_steps,
                epoch=state.epoch,
                loss=logs["loss"],
                **_latest_evaluation(state.log_history),
                learning_rate=logs.get("learning_rate"),
                tokens_per_second=self._reached.trained_tokens / seconds,
                eta_seconds=(state.max_steps - state.global_step) * seconds / max(steps, 1),
                peak_memory_bytes=_peak_memory(),
                checkpoint_step=self._reached.checkpoint_step,
                passes=self._sizes.now,
                timestamp=time.time(),
            )
        )
        thin_history(state.log_history, state.max_steps, state.eval_steps)


def _latest_evaluation(history: list[dict[str, float]]) -> dict[str, Any]:
    entry = next((entry for entry in reversed(history) if "eval_loss" in entry), None)
    if entry is None:
        return {}
    metrics = {name: value for name, value in entry.items() if name not in ("epoch", "step")}
    return {"eval_loss": entry["eval_loss"], "evaluation": metrics, "evaluation_step": int(entry["step"])}


def _peak_memory() -> int:
    """Bytes at most in use so far: of the accelerator, or of this process without one."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    # In KiB on Linux.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class StopCallback(_Callback):
    """Turns a request to stop into a checkpoint and the end of the loop, after the step at hand."""

    def __init__(self, stop: StopSignal) -> None:
        self._stop = stop

    def on_log(self, _args: Any, _state: Any, control: Any, **_: Any) -> None:
        """Ask whether to go on; logging is the last thing of a step before the Trainer looks at `control`."""
        if distributed.agree_to_stop(self._stop):
            control.should_save = True
            control.should_training_stop = True


class CheckpointCallback(_Callback):
    """Has checkpoints saved by the clock too, and holds each step back until the last one is committed."""

    def __init__(
        self, saver: CheckpointSaver, every_seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`every_seconds` is the longest time without a checkpoint, to the next end of a step."""
        self._saver = saver
        self._every_seconds = every_seconds
        self._clock = clock
        self._last = clock()

    def on_train_begin(self, _args: Any, _state: Any, _control: Any, **_: Any) -> None:
        """Start the clock."""
        self._last = self._clock()

    def on_pre_optimizer_step(self, _args: Any, _state: Any, _control: Any, **_: Any) -> None:
        """Wait for a checkpoint under way, and raise what it failed with."""
        self._saver.wait()

    def on_step_end(self, _args: Any, _state: Any, control: Any, **_: Any) -> None:
        """Ask for a checkpoint when it is time."""
        if distributed.any_rank(self._clock() - self._last >= self._every_seconds):
            control.should_save = True

    def on_save(self, _args: Any, _state: Any, _control: Any, **_: Any) -> None:
        """Start the clock anew, whatever the checkpoint was saved for."""
        self._last = self._clock()

    def on_train_end(self, _args: Any, _state: Any, _control: Any, **_: Any) -> None:
        """Wait for the last one."""
        self._saver.wait()


def silence(trainer: Trainer) -> None:
    """Remove the callback that prints each log entry as a dict: `ProgressCallback` reports them."""
    from transformers.trainer_callback import PrinterCallback

    trainer.remove_callback(PrinterCallback)

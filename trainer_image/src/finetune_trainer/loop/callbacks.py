"""Callbacks of the Trainer for progress, stop requests and checkpoints by the clock.

This module imports torch and transformers, so it is imported only when training is about to start.
"""

import logging
import math
import resource
import time
from collections.abc import Callable
from typing import Any, Final

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState

from finetune_api.outcome import Progress
from finetune_trainer.loop.checkpoints import CheckpointSaver
from finetune_trainer.loop.position import TrainingPosition
from finetune_trainer.memory.out_of_memory import MicroBatchSizes
from finetune_trainer.reporting.progress import Reporter
from finetune_trainer.runtime import distributed
from finetune_trainer.runtime.interruption import StopSignal

logger = logging.getLogger(__name__)

CURVE_POINTS: Final = 300
"""Entries of the Trainer's log history that are kept, evenly spread, because every checkpoint contains the history."""
RECENT_ENTRIES: Final = 20
"""Newest entries of the history, none of which is removed."""


class _Callback(TrainerCallback):  # type: ignore[misc] # transformers is untyped
    """Base of the callbacks below."""


class ProgressCallback(_Callback):
    """Reports each step."""

    def __init__(self, reporter: Reporter, position: TrainingPosition, sizes: MicroBatchSizes) -> None:
        self._reporter = reporter
        self._position = position
        self._sizes = sizes
        self._start_step = 0
        self._start_tokens = 0
        self._start_time = 0.0

    def on_train_begin(self, _args: Any, state: TrainerState, _control: Any, **_: Any) -> None:
        """Record where this attempt starts."""
        self._start_step = state.global_step
        self._start_tokens = state.num_input_tokens_seen
        self._start_time = time.monotonic()
        self._position.step = state.global_step

    def on_log(
        self, _args: Any, state: TrainerState, _control: Any, logs: dict[str, float] | None = None, **_: Any
    ) -> None:
        """Report a step; the Trainer logs each one."""
        if not logs or "loss" not in logs:
            return
        seconds = max(time.monotonic() - self._start_time, 1e-6)
        steps = state.global_step - self._start_step
        logger.debug("step finished step=%d", state.global_step)
        self._position.step = state.global_step
        self._position.trained_tokens = state.num_input_tokens_seen - self._start_tokens
        self._reporter.report(
            Progress(
                step=state.global_step,
                total_steps=state.max_steps,
                epoch=state.epoch,
                loss=logs["loss"],
                **_latest_evaluation(state.log_history),
                learning_rate=logs.get("learning_rate"),
                tokens_per_second=self._position.trained_tokens / seconds,
                eta_seconds=(state.max_steps - state.global_step) * seconds / max(steps, 1),
                peak_memory_bytes=_peak_memory(),
                checkpoint_step=self._position.checkpoint_step,
                passes=self._sizes.current,
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
    """Return the peak memory in bytes so far: of the accelerator, or without one of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    # In KiB on Linux.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def thin_history(history: list[dict[str, float]], max_steps: int, eval_steps: int = 1) -> None:
    """Keep evenly spread entries and the newest, chosen by step alone, so that a resumed run ends with the same ones.

    Evaluations, one every `eval_steps`, are spread on their own.
    """
    stride = max(1, math.ceil(max_steps / CURVE_POINTS))
    eval_stride = max(1, math.ceil(max_steps / eval_steps / CURVE_POINTS)) * eval_steps
    history[:-RECENT_ENTRIES] = [
        entry
        for entry in history[:-RECENT_ENTRIES]
        if entry["step"] % (eval_stride if "eval_loss" in entry else stride) == 0
    ]


class StopCallback(_Callback):
    """Ends the loop with a checkpoint, after the current step, once a stop was requested."""

    def __init__(self, stop: StopSignal) -> None:
        self._stop = stop

    def on_log(self, _args: Any, _state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Check for a stop request; logging is the last part of a step before the Trainer reads `control`."""
        if distributed.agree_to_stop(self._stop):
            control.should_save = True
            control.should_training_stop = True


class CheckpointCallback(_Callback):
    """Requests checkpoints by the clock too, and holds each step back until the last checkpoint is committed."""

    def __init__(
        self, saver: CheckpointSaver, every_seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`every_seconds` is the longest time without a checkpoint, rounded up to the end of a step."""
        self._saver = saver
        self._every_seconds = every_seconds
        self._clock = clock
        self._last = clock()

    def on_train_begin(self, _args: Any, _state: Any, _control: Any, **_: Any) -> None:
        """Start the clock."""
        self._last = self._clock()

    def on_pre_optimizer_step(self, _args: Any, _state: Any, _control: Any, **_: Any) -> None:
        """Wait for the pending checkpoint, and raise its error if it failed."""
        self._saver.wait()

    def on_step_end(self, _args: Any, _state: Any, control: TrainerControl, **_: Any) -> None:
        """Request a checkpoint when it is due."""
        if distributed.any_rank(self._clock() - self._last >= self._every_seconds):
            control.should_save = True

    def on_save(self, _args: Any, _state: Any, _control: Any, **_: Any) -> None:
        """Restart the clock, for whatever reason the checkpoint was saved."""
        self._last = self._clock()

    def on_train_end(self, _args: Any, _state: Any, _control: Any, **_: Any) -> None:
        """Wait for the last checkpoint."""
        self._saver.wait()

"""Recovery from exhausted memory: the step is repeated with smaller micro-batches, so the run loses one step's time.

A step's loss is a mean over all of its rows, however they are cut into micro-batches, so its gradients, and with them the
adapter, stay the same within rounding. `step_trainer.StepTrainer` takes the size from `MicroBatchSizes`. Each reduction is
part of the Trainer's state and thus of every checkpoint, so that the next attempt starts with a size that fits. Held-out
rows are measured by `halve_on_oom` where their micro-batches are too large. This module imports torch and transformers, so
it is imported only when training is about to start.

A kernel gives a process no error at its container's limit, it kills it; `allocation_limit` turns that into a MemoryError.
"""

import contextlib
import gc
import logging
import resource
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

import torch
from transformers import PreTrainedModel, TrainerCallback, TrainerState

from finetune_api.outcome import MicroBatching
from finetune_api.v1alpha1 import GradientCheckpointing
from finetune_model.process import memory_limit
from finetune_trainer.errors import as_training_error, is_out_of_memory, one_line
from finetune_trainer.runtime import distributed

if TYPE_CHECKING:
    from peft import PeftModel

logger = logging.getLogger(__name__)

STATE: Final = "PassSizes"
"""Key among the Trainer's `stateful_callbacks`, and so in every checkpoint: it never changes."""

RESERVED_SHARE: Final = 0.03
"""Share of a container's limit kept free for charges that no process allocates: page tables, sockets, files."""

Row = TypeVar("Row")
Value = TypeVar("Value")


class MicroBatchSizes(TrainerCallback):  # type: ignore[misc] # transformers is untyped
    """Micro-batching of the steps: as planned, and smaller after each time that memory was exhausted."""

    def __init__(
        self, planned: MicroBatching, setting: GradientCheckpointing, model: "PeftModel", *, limit: int | None = None
    ) -> None:
        """Start as planned for the peft model `model` and the configured gradient checkpointing `setting`.

        `limit` is the main memory in bytes that a step may use; None for the machine's.
        """
        self.limit = limit
        self.current = planned
        """Micro-batching of the next step."""
        self.reductions: list[dict[str, Any]] = []
        """Step and new micro-batching of each reduction, oldest first, as in run.json."""
        self._base = model.get_base_model()
        self._may_recompute = setting != "disabled" and self._base.supports_gradient_checkpointing

    def on_train_begin(self, _args: Any, state: TrainerState, _control: Any, **_: Any) -> None:
        """Resume with the reductions of an interrupted attempt."""
        self.reductions = state.stateful_callbacks.setdefault(STATE, [])
        if self.reductions:
            self._apply(MicroBatching.model_validate(self.reductions[-1]["passes"]))
        else:
            self._apply(self.current)

    def shrink(self, state: TrainerState, error: Exception) -> None:
        """Halve the micro-batch, or at one row recompute activations. Raises TrainingError if neither is possible."""
        smaller = self._smaller()
        if smaller is None:
            raise as_training_error(error) from error
        step = state.global_step + 1
        self.reductions.append({"step": step, "passes": smaller.to_dict()})
        self._apply(smaller)
        logger.warning(
            "out of memory; repeating the step step=%d micro_batch_size=%d gradient_checkpointing=%s problem=%s",
            step,
            smaller.micro_batch_size,
            smaller.gradient_checkpointing,
            one_line(error),
        )

    def _smaller(self) -> MicroBatching | None:
        rows = self.current.micro_batch_size
        if rows > 1:
            update: dict[str, Any] = {"micro_batch_size": rows // 2}
        elif self._may_recompute and not self.current.gradient_checkpointing:
            update = {"gradient_checkpointing": True}
        else:
            return None
        return self.current.model_copy(update={**update, "reductions": self.current.reductions + 1})

    def _apply(self, micro_batching: MicroBatching) -> None:
        if micro_batching.gradient_checkpointing and not self._base.is_activation_checkpointing:
            recompute_activations(self._base)
        self.current = micro_batching


def recompute_activations(model: PreTrainedModel) -> None:
    """Recompute each layer's activations in the backward pass instead of keeping them."""
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    # Only reentrant checkpointing needs these gradients; without them the lowest layer skips the gradient of its input.
    model.disable_input_require_grads()


@dataclass(frozen=True)
class RandomState:
    """State of torch's generators, so that a repeated step draws the same numbers."""

    cpu: torch.Tensor
    accelerator: torch.Tensor | None

    @classmethod
    def now(cls) -> Self:
        """Capture the current state."""
        on_gpu = torch.cuda.is_available()
        return cls(torch.random.get_rng_state(), torch.cuda.random.get_rng_state() if on_gpu else None)

    def restore(self) -> None:
        """Set the generators back to this state."""
        torch.random.set_rng_state(self.cpu)
        if self.accelerator is not None:
            torch.cuda.random.set_rng_state(self.accelerator)


def release_memory() -> None:
    """Free the memory of a failed pass: graphs in reference cycles, and cached blocks of the accelerator's allocator."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def halve_on_oom(measure: Callable[[Sequence[Row]], Value], rows: Sequence[Row]) -> list[Value]:
    """Call `measure` on all rows at once, or, where memory does not suffice, on each half of them, recursively."""
    try:
        with allocation_limit(host_memory_limit()):
            return [measure(rows)]
    except (RuntimeError, MemoryError) as error:
        if len(rows) == 1 or not is_out_of_memory(error):
            raise
        logger.warning("out of memory; measuring in halves rows=%d problem=%s", len(rows), one_line(error))
    release_memory()
    middle = len(rows) // 2
    return halve_on_oom(measure, rows[:middle]) + halve_on_oom(measure, rows[middle:])


def host_memory_limit() -> int | None:
    """Return this rank's share of the container's memory limit in bytes; None without a limit, or on an accelerator."""
    limit = None if torch.cuda.is_available() else memory_limit()
    return None if limit is None else limit // distributed.world_size()


@contextlib.contextmanager
def allocation_limit(limit: int | None) -> Iterator[None]:
    """Limit this process to `limit` bytes, so that an allocation fails with MemoryError (recoverable) before an OOM kill.

    RLIMIT_DATA counts requested memory, the OOM killer counts memory in use; the difference between the two now is added
    to the limit. Without a limit (None), or once more than the limit is in use, this does nothing.
    """
    data_limit = None if limit is None else _data_limit(limit)
    if data_limit is None:
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (data_limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def _data_limit(limit: int) -> int | None:
    """Return the RLIMIT_DATA with which this process uses at most `limit` bytes; None if it uses more already."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    requested, used = (int(status[name].split()[0]) << 10 for name in ("VmData", "RssAnon"))
    free = int(limit * (1 - RESERVED_SHARE)) - used
    return requested + free if free > 0 else None

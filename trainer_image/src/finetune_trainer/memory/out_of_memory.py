"""Memory that runs out costs a step's time, not the run: the step is taken again in smaller passes.

A step's loss is a mean over all of its rows however they are cut into passes, so its gradients, and with them the adapter, stay
the same within rounding. `trainer.StepTrainer` asks `MicroBatchSizes` how to cut; what was learnt about this device is part of the
Trainer's state and thus of every checkpoint, so that the next attempt starts with what fits. Held-out rows are measured by
`in_halves` where their passes are too large. Like `trainer`, this module is imported only once training is about to start.

A kernel does not tell a process that its container is at its limit, it kills it; `memory_refused_beyond` has it tell.
"""

import contextlib
import gc
import logging
import resource
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self, TypeVar

import torch
from transformers import TrainerCallback

from finetune_api.outcome import MicroBatching
from finetune_api.v1alpha1 import GradientCheckpointing
from finetune_model.process import memory_limit
from finetune_trainer.errors import as_training_error, is_out_of_memory, one_line
from finetune_trainer.runtime import distributed

logger = logging.getLogger(__name__)

STATE: Final = "MicroBatchSizes"
"""Key among the Trainer's `stateful_callbacks`."""

KEPT_SHARE: Final = 0.03
"""Share of a container's limit that is left to what it is charged for and no process allocates: page tables, sockets, files."""

Row = TypeVar("Row")
Value = TypeVar("Value")


class MicroBatchSizes(TrainerCallback):  # type: ignore[misc] # transformers is untyped
    """How steps are cut into passes: as planned, and smaller after each time that memory ran out."""

    def __init__(
        self, planned: MicroBatching, setting: GradientCheckpointing, model: Any, *, limit: int | None = None
    ) -> None:
        """`setting` is what the configuration says about gradient checkpointing of the peft model `model`.

        `limit` is the main memory in bytes that passes may not take more than; None for what the machine has.
        """
        self.limit = limit
        self.now = planned
        """What the next pass is made by."""
        self.reductions: list[dict[str, Any]] = []
        """Each time that memory ran out: the step, and what it was taken with then; oldest first."""
        self._base = model.get_base_model()
        self._may_recompute = setting != "disabled" and self._base.supports_gradient_checkpointing

    def on_train_begin(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        """Take over what an interrupted attempt learnt."""
        self.reductions = state.stateful_callbacks.setdefault(STATE, [])
        if self.reductions:
            self._apply(MicroBatching.model_validate(self.reductions[-1]["passes"]))
        else:
            self._apply(self.now)

    def shrink(self, state: Any, error: Exception) -> None:
        """Make the passes of the next steps smaller. Raises TrainingError if they are as small as can be."""
        smaller = self._smaller()
        if smaller is None:
            raise as_training_error(error) from error
        step = state.global_step + 1
        self.reductions.append({"step": step, "passes": smaller.to_dict()})
        self._apply(smaller)
        logger.warning(
            "out of memory: the step is taken again step=%d micro_batch_size=%d gradient_checkpointing=%s problem=%s",
            step,
            smaller.micro_batch_size,
            smaller.gradient_checkpointing,
            one_line(error),
        )

    def _smaller(self) -> MicroBatching | None:
        rows = self.now.micro_batch_size
        if rows > 1:
            update: dict[str, Any] = {"micro_batch_size": rows // 2}
        elif self._may_recompute and not self.now.gradient_checkpointing:
            update = {"gradient_checkpointing": True}
        else:
            return None
        return self.now.model_copy(update={**update, "reductions": self.now.reductions + 1})

    def _apply(self, passes: MicroBatching) -> None:
        if passes.gradient_checkpointing and not self._base.is_activation_checkpointing:
            recompute_activations(self._base)
        self.now = passes


def recompute_activations(model: Any) -> None:
    """Have every layer's activations computed again when its gradients are due, instead of kept until then."""
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    # Of use to the reentrant kind only; without it the lowest layer has no gradient of its input to compute.
    model.disable_input_require_grads()


@dataclass(frozen=True)
class RandomState:
    """Where torch's generators are, so that a step that is taken again draws what it drew before."""

    cpu: torch.Tensor
    accelerator: torch.Tensor | None

    @classmethod
    def now(cls) -> Self:
        """The state of this moment."""
        on_gpu = torch.cuda.is_available()
        return cls(torch.random.get_rng_state(), torch.cuda.random.get_rng_state() if on_gpu else None)

    def restore(self) -> None:
        """Go back to it."""
        torch.random.set_rng_state(self.cpu)
        if self.accelerator is not None:
            torch.cuda.random.set_rng_state(self.accelerator)


def release_memory() -> None:
    """Give back what a failed pass held: graphs in reference cycles, and blocks that the accelerator's allocator keeps."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def in_halves(measure: Callable[[Sequence[Row]], Value], rows: Sequence[Row]) -> list[Value]:
    """What `measure` returns for all rows in one pass, or for each part of them if memory suffices for parts only."""
    try:
        with memory_refused_beyond(host_limit()):
            return [measure(rows)]
    except (RuntimeError, MemoryError) as error:
        if len(rows) == 1 or not is_out_of_memory(error):
            raise
        logger.warning("out of memory: rows are measured in halves rows=%d problem=%s", len(rows), one_line(error))
    release_memory()
    middle = len(rows) // 2
    return in_halves(measure, rows[:middle]) + in_halves(measure, rows[middle:])


def host_limit() -> int | None:
    """Main memory in bytes that this rank's passes may take at most; None for what the machine has, or on an accelerator."""
    limit = None if torch.cuda.is_available() else memory_limit()
    return None if limit is None else limit // distributed.world_size()


@contextlib.contextmanager
def memory_refused_beyond(limit: int | None) -> Iterator[None]:
    """Within this context the kernel refuses this process memory, to `limit` bytes, before it kills it: that can be made do with.

    The kernel refuses by what was asked for and kills by what was used; by how much they differ now is added to the limit.
    Without a limit (None), or once it is passed, nothing is refused.
    """
    room = None if limit is None else _room(limit)
    if room is None:
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def _room(limit: int) -> int | None:
    """What this process may ask for in all, so that it uses `limit` bytes at most; None if it uses more already."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    asked, used = (int(status[name].split()[0]) << 10 for name in ("VmData", "RssAnon"))
    free = int(limit * (1 - KEPT_SHARE)) - used
    return asked + free if free > 0 else None

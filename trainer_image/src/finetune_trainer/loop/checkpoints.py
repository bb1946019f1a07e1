"""Asynchronous checkpoints: the training thread copies tensors, a second thread serializes, writes and commits them.

`step_trainer.StepTrainer` takes a `Snapshot` where transformers would write a folder, and passes it to `CheckpointSaver`.
The files have the names and contents that transformers reads when it resumes.

While a checkpoint is written, the next step computes its gradients; the optimizer applies them once the checkpoint is
committed. So a kill costs at most the steps between two checkpoints, at most one checkpoint is pending, and a volume that
refuses it ends the run one step later. This module imports torch and transformers, so it is imported only when training is
about to start.
"""

import io
import json
import random
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from safetensors.torch import save as to_safetensors
from transformers import Trainer
from transformers.trainer_pt_utils import safe_globals

from finetune_api.artifacts import ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE, Manifest
from finetune_trainer.errors import is_out_of_memory
from finetune_trainer.model.adapter_files import ADAPTER, BEST_ADAPTER_FILE, _copied, adapter_tensors
from finetune_trainer.runtime import distributed
from finetune_trainer.store.run_store import RunStore, write_durably

if TYPE_CHECKING:
    from finetune_trainer.evaluation.evaluation import BestAdapter
    from finetune_trainer.loop.position import TrainingPosition


@dataclass(frozen=True)
class Snapshot:
    """State from which a run resumes after a step; it shares no memory with the training, which continues meanwhile."""

    step: int
    adapter: dict[str, torch.Tensor]
    adapter_config: dict[str, Any]
    optimizer: dict[str, Any]
    scheduler: dict[str, Any]
    random_states: list[dict[str, Any]]
    """Random state of each rank."""
    trainer_state: dict[str, Any]
    """The Trainer's state, with the step and epoch that determine the position in the dataset."""
    best_adapter: dict[str, torch.Tensor]
    """Adapter of the best evaluation; empty before the first one."""


def take_snapshot(trainer: Trainer, best: "BestAdapter | None" = None) -> Snapshot:
    """Copy the state of a training between two steps; a collective, which all ranks call."""
    return Snapshot(
        step=trainer.state.global_step,
        adapter=adapter_tensors(trainer.model),
        adapter_config=trainer.model.peft_config[ADAPTER].to_dict(),
        optimizer=_copied(trainer.optimizer.state_dict()),
        scheduler=_copied(trainer.lr_scheduler.state_dict()),
        random_states=distributed.all_gather(_random_state()),
        trainer_state=asdict(trainer.state),
        best_adapter=best.tensors if best else {},
    )


def _random_state() -> dict[str, Any]:
    state = {"python": random.getstate(), "numpy": np.random.get_state(), "cpu": torch.random.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.random.get_rng_state()
    return state


def random_state_file(rank: int) -> str:
    """Return the file name of a rank's random state; for rank 0 it is transformers' own name."""
    return f"rng_state_{rank}.pth" if rank else "rng_state.pth"


def load_random_state(checkpoint: Path, rank: int) -> None:
    """Restore a rank's random state; a checkpoint of fewer ranks has none for it."""
    file = checkpoint / random_state_file(rank)
    if not file.exists():
        return
    with safe_globals():
        state = torch.load(file, weights_only=True)
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.random.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.random.set_rng_state(state["cuda"])


def to_files(snapshot: Snapshot) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of each file that transformers resumes from, so that only one content is in memory."""
    yield ADAPTER_WEIGHTS_FILE, to_safetensors(snapshot.adapter, {"format": "pt"})
    yield ADAPTER_CONFIG_FILE, _json_bytes(snapshot.adapter_config)
    yield "optimizer.pt", _torch_bytes(snapshot.optimizer)
    yield "scheduler.pt", _torch_bytes(snapshot.scheduler)
    for rank, state in enumerate(snapshot.random_states):
        yield random_state_file(rank), _torch_bytes(state)
    yield "trainer_state.json", _json_bytes(snapshot.trainer_state)
    if snapshot.best_adapter:
        yield BEST_ADAPTER_FILE, to_safetensors(snapshot.best_adapter, {"format": "pt"})


def _json_bytes(document: dict[str, Any]) -> bytes:
    # peft's configurations hold sets.
    return (json.dumps(document, indent=2, sort_keys=True, default=sorted) + "\n").encode()


def _torch_bytes(value: object) -> bytes:
    # Through a buffer, because torch's native writer does not name a full disk in its error.
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


class CheckpointSaver:
    """Writes and commits checkpoints on one thread; as a context manager, it exits with no checkpoint pending."""

    def __init__(
        self,
        store: RunStore,
        position: "TrainingPosition",
        manifest: Manifest,
        keep: int,
        best: "BestAdapter | None" = None,
    ) -> None:
        """Keep the newest `keep` checkpoints, each with the origin in `manifest`; `position` records the newest one."""
        self._store = store
        self._position = position
        self._manifest = manifest
        self._keep = keep
        self._best = best
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: tuple[Snapshot, Future[None]] | None = None
        self.saved = 0
        """Number of committed checkpoints."""
        self.blocked_seconds = 0.0
        """Seconds that training waited for checkpoints."""
        self.writing_seconds = 0.0
        """CPU seconds of the writing thread: at most this slows down training on a machine without a free core."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._executor.shutdown()
        if kind is None:
            self.wait()

    def save(self, trainer: Trainer) -> None:
        """Start saving the state of a training; returns once it is copied. Raises the error of the previous checkpoint."""
        self.wait()
        started = time.monotonic()
        snapshot = take_snapshot(trainer, self._best)
        if distributed.rank() == 0:
            self._pending = snapshot, self._executor.submit(self._commit, snapshot)
        self.blocked_seconds += time.monotonic() - started

    def wait(self) -> None:
        """Wait until the last checkpoint is committed; raises its error if it failed."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        snapshot, written = pending
        started = time.monotonic()
        try:
            written.result()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            # The concurrent step had taken all memory, and has released it by now.
            self._commit(snapshot)
        self.blocked_seconds += time.monotonic() - started

    def _commit(self, snapshot: Snapshot) -> None:
        started = time.thread_time()
        with self._store.writing():
            staged = self._store.stage_checkpoint(snapshot.step)
            for name, content in to_files(snapshot):
                write_durably(staged / name, content)
        update = {"kind": "checkpoint", "step": snapshot.step}
        self._store.commit_checkpoint(staged, self._manifest.model_copy(update=update))
        self._position.checkpoint_step = snapshot.step
        self._store.prune_checkpoints(self._keep)
        self.saved += 1
        self.writing_seconds += time.thread_time() - started

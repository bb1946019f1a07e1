"""Ranks: processes that share each step of one training, one per GPU, or a few on a CPU.

torchrun starts them, or rank 0, the main process, starts the others (`TrainingConfig.processes`). The main process stands
for the run: its signals, exit code and messages are the run's. The other ranks compute their shard and write nothing.

transformers sees a training by one process in each rank; this module joins them. Each rank takes a shard of a step's rows
(`shard_for_rank`), losses are divided by the label tokens of all ranks, and the gradients of the adapter, the only trained
weights, are all-reduced before they are clipped. So all ranks hold the same weights at all times, to the bit. See
docs/decisions/0018.
"""

import contextlib
import ctypes
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from finetune_api.contract import ExitCode
from finetune_api.reasons import Reason
from finetune_api.training import TrainingConfig
from finetune_trainer.errors import TrainingError
from finetune_trainer.runtime.environment import DEVICES_ENV
from finetune_trainer.runtime.interruption import StopSignal

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

RANK_ENV: Final = "RANK"
WORLD_SIZE_ENV: Final = "WORLD_SIZE"
TORCHRUN_ENV: Final = (RANK_ENV, WORLD_SIZE_ENV, "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK")
"""torchrun's variables, from which accelerate would start a distributed training of its own."""
PR_SET_PDEATHSIG: Final = 1
"""Option of prctl(2): the signal that a process receives when its parent ends."""
WORKER_EXIT_TIMEOUT: Final = 10.0
"""Seconds that the other ranks may take to end after the main process is done."""
PEER_EXIT_GRACE: Final = 60.0
"""Seconds after a peer's exit until the main process aborts, unless a collective has failed by then."""

Value = TypeVar("Value")


def _group() -> Any:
    """Return torch.distributed while a process group exists, else None; does not import torch."""
    torch = sys.modules.get("torch")
    group = torch.distributed if torch else None
    return group if group and group.is_available() and group.is_initialized() else None


def rank() -> int:
    """Return the rank of this process, from 0."""
    group = _group()
    return int(group.get_rank()) if group else 0


def world_size() -> int:
    """Return the number of processes that share each step."""
    group = _group()
    return int(group.get_world_size()) if group else 1


def is_worker_rank() -> bool:
    """Check if torchrun or the main process started this process as a rank other than 0."""
    return int(os.environ.get(RANK_ENV) or 0) > 0


@contextlib.contextmanager
def process_group(config: TrainingConfig, run_id: str) -> Iterator[None]:
    """Join the process group of a run within this context; torchrun started its ranks, or `config.processes` are started."""
    if int(os.environ.get(WORLD_SIZE_ENV) or 1) > 1:
        with _process_group():
            yield
    elif config.processes and config.processes > 1:
        with _worker_ranks(config, run_id), _process_group():
            yield
    else:
        yield


@contextlib.contextmanager
def _process_group() -> Iterator[None]:
    import torch

    # Numbers and objects are in main memory, gradients where the model is.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    torch.distributed.init_process_group(backend)
    for name in TORCHRUN_ENV:
        os.environ.pop(name, None)
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // world_size()))
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


@contextlib.contextmanager
def _worker_ranks(config: TrainingConfig, run_id: str) -> Iterator[None]:
    """Start the other ranks as children of this process, which becomes rank 0. They do not outlive it."""
    size = config.processes or 1
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    common = {WORLD_SIZE_ENV: str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    devices = (os.environ.get(DEVICES_ENV) or "").split(",")
    if len(devices) < size:
        devices = [str(number) for number in range(size)]
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as children:
        file = Path(folder, "config.json")
        file.write_text(json.dumps(config.to_dict()))
        command = [sys.executable, "-m", "finetune_trainer", "train", str(file), "--run-id", run_id]
        for number in range(1, size):
            own = {RANK_ENV: str(number), DEVICES_ENV: devices[number]}
            children.enter_context(_child(command, {**os.environ, **common, **own}))
        os.environ.update({**common, RANK_ENV: "0", DEVICES_ENV: devices[0]})
        yield


@contextlib.contextmanager
def _child(command: list[str], environment: dict[str, str]) -> Iterator[None]:
    child = subprocess.Popen(command, env=environment)
    finished = threading.Event()
    threading.Thread(target=_abort_without_peer, args=(child, finished), name="watch", daemon=True).start()
    try:
        yield
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(WORKER_EXIT_TIMEOUT)
    finally:
        finished.set()
        child.kill()
        child.wait()


def _abort_without_peer(child: subprocess.Popen[bytes], finished: threading.Event) -> None:
    """Abort this process after a peer has exited, because most collectives fail then, but some hang."""
    code = child.wait()
    if code and not finished.wait(PEER_EXIT_GRACE):
        logger.error("peer process exited; aborting pid=%d code=%d", child.pid, code)
        logging.shutdown()
        os._exit(ExitCode.BUG)


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent ends, in whatever way."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def all_gather(value: Value) -> list[Value]:
    """All-gather a value: return that of each rank, in their order."""
    group = _group()
    if not group:
        return [value]
    values: list[Any] = [None] * group.get_world_size()
    group.all_gather_object(values, value)
    return values


def broadcast_from_main(make: Callable[[], Value]) -> Value:
    """Call `make` in the main process only, and broadcast its result to all ranks."""
    group = _group()
    if not group:
        return make()
    values: list[Any] = [make() if group.get_rank() == 0 else None]
    group.broadcast_object_list(values, src=0)
    made: Value = values[0]
    return made


def main_process_first(make: Callable[[], Value]) -> Value:
    """Call `make` in the main process, then in all other ranks, which find the files that it downloaded."""
    if rank() == 0:
        made = make()
        all_gather(None)
        return made
    all_gather(None)
    return make()


def all_reduce_sum(*values: float) -> list[float]:
    """All-reduce each value to its sum over all ranks."""
    group = _group()
    if not group:
        return list(values)
    import torch

    sums = torch.tensor(values, dtype=torch.float64)
    group.all_reduce(sums)
    return [float(value) for value in sums]


def any_rank(value: bool) -> bool:
    """All-reduce a value to True if it is true in any rank."""
    return all_reduce_sum(float(value))[0] > 0


def agree_to_stop(stop: StopSignal) -> bool:
    """Return True if any rank has a stop request, and request the stop in all of them."""
    agreed = any_rank(stop.requested)
    if agreed:
        stop.request()
    return agreed


def assert_same_on_all_ranks(value: object, name: str) -> None:
    """Raise TrainingError if the value differs between ranks: files may change between two reads."""
    if len(set(all_gather(value))) > 1:
        raise TrainingError(
            Reason.DATASET_INVALID,
            f"The processes of this run read different {name}: the files changed meanwhile. Leave them unchanged while the "
            "run starts.",
            retryable=True,
        )


def all_reduce_gradients(loss: "torch.Tensor", parameters: "Sequence[torch.nn.Parameter]") -> None:
    """All-reduce loss and gradients to their sums over all ranks, in place, by two collectives."""
    group = _group()
    if not group:
        return
    import torch

    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])
    group.all_reduce(flat)
    for parameter, gradient in zip(parameters, torch.split(flat, [p.numel() for p in parameters]), strict=True):
        parameter.grad = gradient.view_as(parameter)
    group.all_reduce(loss)


def rank_batches(items: Sequence[Value], size: int) -> Iterator[Sequence[Value]]:
    """Yield this rank's batches of `size` items; all ranks get as many batches, so the last one may be empty."""
    for start in range(0, len(items), size * world_size()):
        first = start + rank() * size
        yield items[first : first + size]


def shard_for_rank(rows: Sequence[Value], tokens: Sequence[int]) -> Sequence[Value]:
    """Return this rank's shard of a step's rows, balanced by their `tokens`; neighbors stay together."""
    if world_size() == 1:
        return rows
    start, end = cut_evenly(tokens, world_size())[rank()]
    return rows[start:end]


def cut_evenly(tokens: Sequence[int], parts: int) -> list[tuple[int, int]]:
    """Return start and end of each part, so that parts have about as many tokens; none is empty if there are enough rows."""
    sums = [0, *accumulate(tokens)]
    cut, start = [], 0
    for left in range(parts, 0, -1):
        rows = len(tokens) - start
        goal = sums[start] + (sums[-1] - sums[start]) / left
        candidates = range(start + min(1, rows), start + max(min(1, rows), rows - left + 1) + 1)
        end = min(candidates, key=lambda end: abs(sums[end] - goal)) if left > 1 else len(tokens)
        cut.append((start, end))
        start = end
    return cut

"""Several processes, called ranks, that share each step of one training: one a GPU, or a few on a CPU.

They are started by torchrun, or by the first of them (`TrainingConfig.processes`), which then is the process that everybody
else deals with: its signals, exit code and messages are those of the run. The others do their share and write nothing.

To transformers each rank is a training of its own by one process; what makes them one is this module. A step's rows are dealt
out (`shard_for_rank`), losses are divided by the label tokens of all ranks, and gradients of the adapter, the only trained
weights, are added up before they are clipped. So the ranks hold the same weights at all times, to the bit. See
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
from typing import Any, Final, TypeVar

from finetune_api.contract import ExitCode
from finetune_api.reasons import Reason
from finetune_api.training import TrainingConfig
from finetune_trainer.errors import TrainingError
from finetune_trainer.runtime.environment import DEVICES_ENV
from finetune_trainer.runtime.interruption import StopSignal

logger = logging.getLogger(__name__)

RANK_ENV: Final = "RANK"
COUNT_ENV: Final = "WORLD_SIZE"
TORCHRUN_ENV: Final = (RANK_ENV, COUNT_ENV, "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK")
"""torchrun's names, by which accelerate would take charge of the ranks."""
PR_SET_PDEATHSIG: Final = 1
"""prctl's: the signal that a process gets when its parent is gone."""
ASSISTANT_TIMEOUT: Final = 10.0
"""Seconds that the other ranks may take to end after the first one."""
PEER_EXIT_GRACE: Final = 60.0
"""Seconds after which the first rank ends, if it does not notice by itself that another one is dead."""

Value = TypeVar("Value")


def _group() -> Any:
    """torch.distributed while there are several ranks, else None; does not import torch for that."""
    torch = sys.modules.get("torch")
    group = torch.distributed if torch else None
    return group if group and group.is_available() and group.is_initialized() else None


def rank() -> int:
    """Number of this process, from 0."""
    group = _group()
    return int(group.get_rank()) if group else 0


def world_size() -> int:
    """How many processes share each step."""
    group = _group()
    return int(group.get_world_size()) if group else 1


def is_worker_rank() -> bool:
    """Whether torchrun or the first rank started this process as another rank than the first."""
    return int(os.environ.get(RANK_ENV) or 0) > 0


@contextlib.contextmanager
def process_group(config: TrainingConfig, run_id: str) -> Iterator[None]:
    """Be one of the ranks of a run within this context: those that torchrun started, or `config.processes` of them."""
    if int(os.environ.get(COUNT_ENV) or 1) > 1:
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

    # Figures and messages are in main memory, gradients where the model is.
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
    """Start the other ranks as children, and make this process the first one. They do not outlive it."""
    of = config.processes or 1
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    common = {COUNT_ENV: str(of), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    devices = (os.environ.get(DEVICES_ENV) or "").split(",")
    if len(devices) < of:
        devices = [str(number) for number in range(of)]
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as children:
        file = Path(folder, "config.json")
        file.write_text(json.dumps(config.to_dict()))
        command = [sys.executable, "-m", "finetune_trainer", "train", str(file), "--run-id", run_id]
        for number in range(1, of):
            own = {RANK_ENV: str(number), DEVICES_ENV: devices[number]}
            children.enter_context(_child(command, {**os.environ, **common, **own}))
        os.environ.update({**common, RANK_ENV: "0", DEVICES_ENV: devices[0]})
        yield


@contextlib.contextmanager
def _child(command: list[str], environment: dict[str, str]) -> Iterator[None]:
    child = subprocess.Popen(command, env=environment)
    over = threading.Event()
    threading.Thread(target=_watch, args=(child, over), name="watch", daemon=True).start()
    try:
        yield
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(ASSISTANT_TIMEOUT)
    finally:
        over.set()
        child.kill()
        child.wait()


def _watch(child: subprocess.Popen[bytes], over: threading.Event) -> None:
    """Do not let this process wait for one that is dead: most exchanges fail then, and some hang."""
    code = child.wait()
    if code and not over.wait(PEER_EXIT_GRACE):
        logger.error("a process of this run ended and is waited for in vain; exiting pid=%d code=%d", child.pid, code)
        logging.shutdown()
        os._exit(ExitCode.BUG)


def die_with_parent() -> None:
    """Have the kernel end this process when the one that started it ends, in whatever way."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def all_gather(value: Value) -> list[Value]:
    """The value of each rank, in their order."""
    group = _group()
    if not group:
        return [value]
    values: list[Any] = [None] * group.get_world_size()
    group.all_gather_object(values, value)
    return values


def broadcast_from_main(make: Callable[[], Value]) -> Value:
    """What `make` returns in the first rank; it is called in no other."""
    group = _group()
    if not group:
        return make()
    values: list[Any] = [make() if group.get_rank() == 0 else None]
    group.broadcast_object_list(values, src=0)
    made: Value = values[0]
    return made


def main_process_first(do: Callable[[], Value]) -> Value:
    """Do it in the first rank, then in all others, which find what the first one downloaded and kept."""
    if rank() == 0:
        made = do()
        all_gather(None)
        return made
    all_gather(None)
    return do()


def all_reduce_sum(*values: float) -> list[float]:
    """The sum of each value over all ranks."""
    group = _group()
    if not group:
        return list(values)
    import torch

    sums = torch.tensor(values, dtype=torch.float64)
    group.all_reduce(sums)
    return [float(value) for value in sums]


def any_rank(answer: bool) -> bool:
    """Whether it is so in any rank."""
    return all_reduce_sum(float(answer))[0] > 0


def agree_to_stop(stop: StopSignal) -> bool:
    """Whether any rank was asked to stop; all of them are from then on."""
    agreed = any_rank(stop.requested)
    if agreed:
        stop.request()
    return agreed


def assert_same_on_all_ranks(value: Any, what: str) -> None:
    """Raise TrainingError if ranks differ: files may change between two reads."""
    if len(set(all_gather(value))) > 1:
        raise TrainingError(
            Reason.DATASET_INVALID,
            f"The processes of this run read different {what}; did it change meanwhile?",
            retryable=True,
        )


def all_reduce_gradients(loss: Any, parameters: Sequence[Any]) -> None:
    """Make the loss and the gradients of this rank the sums over all ranks, in two exchanges."""
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
    """Every so many items, this rank its own; as often in every rank, so that some may get an empty list at the end."""
    for start in range(0, len(items), size * world_size()):
        first = start + rank() * size
        yield items[first : first + size]


def shard_for_rank(rows: Sequence[Value], tokens: Sequence[int]) -> Sequence[Value]:
    """This rank's part of a step's rows, which have so many tokens each: neighbors stay together."""
    if world_size() == 1:
        return rows
    start, end = cut_evenly(tokens, world_size())[rank()]
    return rows[start:end]


def cut_evenly(tokens: Sequence[int], parts: int) -> list[tuple[int, int]]:
    """Start and end of each part, so that parts have about as many tokens; none is empty if there are rows enough."""
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

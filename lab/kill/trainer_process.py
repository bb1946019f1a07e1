"""Starts the trainer as a pod does, `python -m finetune_trainer work`, so that it can be killed like one.

Cold means a new interpreter, which spends seconds on imports. Warm means the same command in a process forked from one that has
imported everything already: hundreds of kills then fit into minutes.
"""

import multiprocessing
import os
import re
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from finetune_trainer.runtime.environment import prepare_environment
from lab.kill import kill_points

TIMEOUT: Final = 120.0
"""Seconds that one attempt may take, many times what it needs."""
POLL: Final = 0.0005
"""Seconds between two looks at log and volume; a save takes some milliseconds."""
STEP: Final = re.compile(r"step finished step=(\d+)")
START: Final = re.compile(r"training starts .*from_step=(\d+)")
COMMAND: Final = ["-m", "finetune_trainer", "work"]
IMPORTED: Final = [
    "finetune_trainer.loop.assemble",
    "finetune_trainer.tasks.worker",
    "lab.kill.warm_imports",
]


class Attempt:
    """One process of the trainer, with its log."""

    def __init__(self, process: "_Cold | _Warm", log: Path) -> None:
        self._process = process
        self._log = log

    def steps(self) -> list[int]:
        """Steps that it has finished."""
        return [int(step) for step in STEP.findall(self.log())]

    def from_step(self) -> int | None:
        """Step that it went on from; None if it ended before training."""
        match = START.search(self.log())
        return int(match[1]) if match else None

    def log(self) -> str:
        """All that it has said."""
        return self._log.read_text() if self._log.exists() else ""

    def is_running(self) -> bool:
        return self._process.is_running()

    def wait_until(self, condition: Callable[[], bool]) -> bool:
        """Whether the condition came true before the process ended."""
        deadline = time.monotonic() + TIMEOUT
        while self.is_running():
            if condition():
                return True
            if time.monotonic() > deadline:
                self.send(signal.SIGKILL)
                raise AssertionError(f"an attempt took more than {TIMEOUT:.0f} s:\n{self.log()[-3000:]}")
            time.sleep(POLL)
        return False

    def send(self, number: signal.Signals) -> None:
        """Send a signal, unless it has ended."""
        if self.is_running():
            os.kill(self._process.pid, number)

    def exit_code(self) -> int:
        """Wait for its end; negative is the signal that ended it."""
        self.wait_until(lambda: False)
        return self._process.exit_code()


class _Cold:
    def __init__(self, log: Path, environment: Mapping[str, str]) -> None:
        with log.open("wb") as file:
            self._popen = subprocess.Popen(
                [sys.executable, *COMMAND], env={**os.environ, **environment}, stderr=file, stdout=file
            )
        self.pid = self._popen.pid

    def is_running(self) -> bool:
        return self._popen.poll() is None

    def exit_code(self) -> int:
        return self._popen.wait()


class _Warm:
    def __init__(self, log: Path, environment: Mapping[str, str], folder: Path | None, operation: int) -> None:
        arguments = (log, dict(environment), folder, operation)
        self._process = _forkserver().Process(target=_be_the_trainer, args=arguments)
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def is_running(self) -> bool:
        return self._process.is_alive()

    def exit_code(self) -> int:
        self._process.join()
        assert self._process.exitcode is not None
        return self._process.exitcode


def start_cold(log: Path, environment: Mapping[str, str]) -> Attempt:
    """The trainer in a new interpreter."""
    return Attempt(_Cold(log, environment), log)


def start_warm(log: Path, environment: Mapping[str, str], folder: Path | None = None, operation: int = 0) -> Attempt:
    """The trainer in a warm process; with a folder, killed before its n-th operation there, or with 0 only counting them."""
    return Attempt(_Warm(log, environment, folder, operation), log)


def _forkserver() -> "multiprocessing.context.ForkServerContext":
    prepare_environment()  # before the server imports torch
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    return context


def _be_the_trainer(log: Path, environment: dict[str, str], folder: Path | None, operation: int) -> None:
    """Run the command as `python -m` would, in this process."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.update(environment)
    sys.argv = COMMAND[1:]
    count = kill_points.arm(folder, operation) if folder else None
    try:
        runpy.run_module(COMMAND[1], run_name="__main__", alter_sys=True)
    finally:
        if count:
            os.write(2, f"{kill_points.COUNT} {count()}\n".encode())

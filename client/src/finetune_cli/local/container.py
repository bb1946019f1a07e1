"""One container of a pod as a process of this machine."""

import asyncio
import ctypes
import os
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from finetune_api.contract import MAX_TERMINATION_BYTES
from finetune_cli.local.mapping import local_path
from finetune_operator.kubernetes_types import Raw

TRAINER_IMAGE: Final = "finetune_trainer"
SERVER_IMAGE: Final = "finetune_inference"
ENTRY_POINTS: Final[Mapping[str, tuple[str, ...]]] = {TRAINER_IMAGE: ("work",), SERVER_IMAGE: ()}
"""Arguments of an image that a container without `args` gets. On this machine an image is a Python module."""
PR_SET_PDEATHSIG: Final = 1
"""prctl(2): the signal that a process gets when its parent dies."""
LOG_TAIL_BYTES: Final = 2048
"""Length of a log tail that replaces a missing termination message, as in Kubernetes."""


@dataclass(frozen=True)
class Ended:
    """How a container ended."""

    exit_code: int
    message: str


@dataclass(frozen=True)
class Container:
    """A container that can be started."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    folder: Path
    """Folder of its pod."""
    falls_back_to_log: bool

    @property
    def log(self) -> Path:
        """Standard output and error."""
        return self.folder / f"{self.name}.log"

    @property
    def termination_log(self) -> Path:
        """File for its last words."""
        return self.folder / f"{self.name}.termination"

    async def start(self, lock: int) -> asyncio.subprocess.Process:
        """Start the process, which keeps the descriptor `lock` open.

        In a session of its own, because a Ctrl-C of the terminal is for the command alone.
        """
        self.termination_log.write_bytes(b"")
        with self.log.open("ab") as log:
            return await asyncio.create_subprocess_exec(
                *self.command,
                env=dict(self.environment),
                cwd=self.folder,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=(lock,),
                preexec_fn=_die_with(os.getpid()),
            )

    def ended(self, exit_code: int) -> Ended:
        """Return how the process ended, with its termination message."""
        # The shell's convention, which Kubernetes shows too: 128 and the signal.
        return Ended(128 - exit_code if exit_code < 0 else exit_code, self.last_words(is_failure=exit_code != 0))

    def last_words(self, *, is_failure: bool) -> str:
        """Return its termination message, or the end of its log if it failed without one."""
        message = _tail(self.termination_log, MAX_TERMINATION_BYTES)
        return message if message or not (is_failure and self.falls_back_to_log) else _tail(self.log, LOG_TAIL_BYTES)


def build_container(
    raw: Raw,
    folder: Path,
    mounts: Mapping[str, Path],
    secrets: Mapping[str, Mapping[str, str]],
    extra: Mapping[str, str],
) -> Container:
    """Make a process of a pod's container: its module, arguments and environment, with the paths of this machine.

    `extra` is added to the environment. A reference to a Secret that is not in `secrets` is left out.
    """
    environment = {k: v for k, v in os.environ.items() if not k.startswith("FINETUNE_")}
    # Each of the processes of a run would compile torch and transformers again.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    environment |= {"PYTHONUNBUFFERED": "1", "PYTHONSAFEPATH": "1"}
    for variable in raw.get("env", []):
        value = variable.get("value")
        if value is None:
            reference = variable["valueFrom"]["secretKeyRef"]
            value = secrets.get(reference["name"], {}).get(reference["key"])
        if value is not None:
            environment[variable["name"]] = local_path(value, mounts)
    arguments = raw.get("args", ENTRY_POINTS[raw["image"]])
    return Container(
        name=raw["name"],
        command=(sys.executable, "-m", raw["image"], *(local_path(argument, mounts) for argument in arguments)),
        environment={**environment, **extra},
        folder=folder,
        falls_back_to_log=raw.get("terminationMessagePolicy") == "FallbackToLogsOnError",
    )


async def stop(process: asyncio.subprocess.Process, grace_seconds: float) -> int:
    """Send SIGTERM, and SIGKILL after the grace period; returns the exit code."""
    if process.returncode is None:
        process.terminate()
    try:
        return await asyncio.wait_for(process.wait(), grace_seconds)
    except TimeoutError:
        process.kill()
        return await process.wait()


def _die_with(parent: int) -> Callable[[], None] | None:
    """Have the new process get SIGTERM when this one is killed: a trainer nobody waits for saves a checkpoint and ends."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)

    def prepare() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(1)

    return prepare


def _tail(path: Path, size: int) -> str:
    try:
        return path.read_bytes()[-size:].decode(errors="replace")
    except OSError:
        return ""

"""Long-running processes without a service manager: started detached, found again by later commands, stopped by pid.

A pid file is written by the process itself before it becomes the program, so there is no moment in which a started
process is unknown, whenever this command is interrupted. It holds the start time and the boot id beside the pid: a
number that the kernel has given to somebody else since then is never taken for ours, and never killed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lab.kubernetes.errors import ClusterError

_LAUNCHER = """
pid_file=$1; fingerprint=$2; shift 2
{ cat "/proc/$$/stat" /proc/sys/kernel/random/boot_id; echo "$fingerprint"; } > "$pid_file.partial" || exit 1
mv "$pid_file.partial" "$pid_file" || exit 1
exec "$@"
"""
"""Runs in the new session: describes itself in the pid file, then becomes the program with the same pid."""

STOP_SECONDS = 10.0
"""Longest time from SIGTERM to the end of a process, in seconds; then it is killed."""


@dataclass(frozen=True)
class Component:
    """One program of the cluster and how to know that it works."""

    name: str
    command: tuple[str, ...]
    healthy: Callable[[], bool]
    files: tuple[Path, ...] = ()
    """Configuration that the program reads only when it starts: a change means a restart."""
    environment: Mapping[str, str] = field(default_factory=dict)
    ready_within: float = 60.0
    """Seconds; generous, since a busy machine is slow and a broken component usually exits at once."""

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for part in (*self.command, *(f"{name}={value}" for name, value in sorted(self.environment.items()))):
            digest.update(part.encode() + b"\0")
        for file in self.files:
            digest.update(file.read_bytes() + b"\0")
        return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Process:
    """The content of a pid file."""

    pid: int
    start_ticks: int
    boot_id: str
    fingerprint: str

    def alive(self) -> bool:
        stat = _read_stat(self.pid)
        return stat is not None and stat.start_ticks == self.start_ticks and self.boot_id == boot_id()


class Supervisor:
    """Starts, checks and stops components; its only memory is the folder of pid files."""

    def __init__(self, pid_directory: Path, log_directory: Path, *, detached: bool) -> None:
        """Detached processes outlive this command; others are killed by the kernel when their starter dies."""
        self.pid_directory = pid_directory
        self.log_directory = log_directory
        self.detached = detached
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, component: Component) -> bool:
        """Make sure that the component runs as described; False if it already did. Does not wait for health."""
        running = self.find(component.name)
        if running is not None:
            if running.fingerprint == component.fingerprint() and component.healthy():
                return False
            self.stop(component.name)
        if component.healthy():
            raise ClusterError(
                f"cannot start {component.name}: a process that is not ours already answers at its address"
            )
        self._spawn(component)
        return True

    def wait_until_healthy(self, component: Component) -> None:
        """Return as soon as the component answers; raise with the end of its log if it exits or takes too long."""
        deadline = time.monotonic() + component.ready_within
        while not component.healthy():
            # The launcher needs a moment to write the pid file, so a child that has not exited counts as running.
            child = self._children.get(component.name)
            exited = child.poll() is not None if child is not None else self.find(component.name) is None
            if exited:
                raise ClusterError(f"{component.name} has exited; the end of its log:\n{self.log_tail(component.name)}")
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"{component.name} is not healthy after {component.ready_within:.0f} s; "
                    f"the end of its log:\n{self.log_tail(component.name)}"
                )
            time.sleep(0.05)

    def find(self, name: str) -> Process | None:
        """Return the running process of this name, or None."""
        process = _read_pid_file(self._pid_file(name))
        return process if process is not None and process.alive() else None

    def names(self) -> list[str]:
        """Return the names of all components that have a pid file, dead or alive."""
        return sorted(file.stem for file in self.pid_directory.glob("*.pid"))

    def stop(self, name: str, seconds: float = STOP_SECONDS) -> None:
        """SIGTERM, then SIGKILL after `seconds`; 0 kills at once."""
        process = self.find(name)
        if process is not None:
            terminate([process.pid], seconds)
        child = self._children.pop(name, None)
        if child is not None:
            # Reached with a process still alive only if it was interrupted before it wrote its pid file.
            child.kill()
            child.wait()
        self._pid_file(name).unlink(missing_ok=True)

    @contextlib.contextmanager
    def paused(self, name: str) -> Iterator[None]:
        """Give a running process no CPU until the block ends, as a busy machine would."""
        process = self.find(name)
        if process is None:
            raise ClusterError(f"cannot pause {name}: it does not run")
        os.kill(process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(process.pid, signal.SIGCONT)

    def log_file(self, name: str) -> Path:
        return self.log_directory / f"{name}.log"

    def log_tail(self, name: str, lines: int = 15) -> str:
        log = self.log_file(name)
        if not log.exists():
            return "(no log)"
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:]) + f"\n({log})"

    def _spawn(self, component: Component) -> None:
        self.pid_directory.mkdir(parents=True, exist_ok=True)
        self.log_directory.mkdir(parents=True, exist_ok=True)
        pid_file = self._pid_file(component.name)
        pid_file.unlink(missing_ok=True)
        launch = ["sh", "-c", _LAUNCHER, "launcher", str(pid_file), component.fingerprint(), *component.command]
        if not self.detached and threading.current_thread() is threading.main_thread():
            # The kernel's signal follows the death of the starting *thread*; only the main one lives long enough.
            launch = ["setpriv", "--pdeathsig", "KILL", *launch]
        with self.log_file(component.name).open("wb") as log:
            self._children[component.name] = subprocess.Popen(
                launch,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **component.environment},
                cwd="/",
                start_new_session=True,
            )

    def _pid_file(self, name: str) -> Path:
        return self.pid_directory / f"{name}.pid"


def terminate(pids: Iterable[int], seconds: float) -> None:
    """End these processes: SIGTERM first, SIGKILL for those that are still there after `seconds`."""
    started = {pid: stat.start_ticks for pid in pids if (stat := _read_stat(pid)) is not None}
    if seconds > 0:
        _signal_all(started, signal.SIGTERM)
        if _wait_until_gone(started, seconds):
            return
    _signal_all(started, signal.SIGKILL)
    _wait_until_gone(started, STOP_SECONDS)


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def command_lines() -> dict[int, tuple[str, ...]]:
    """Return every process of the machine with its arguments."""
    found: dict[int, tuple[str, ...]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                found[int(entry.name)] = tuple((entry / "cmdline").read_bytes().decode(errors="replace").split("\0"))
    return found


def parse_stat(line: str) -> tuple[int, str, int]:
    """Pid, state and start time from /proc/PID/stat; the program's name in brackets may itself hold brackets."""
    pid, _, rest = line.partition(" (")
    fields = rest.rpartition(")")[2].split()
    return int(pid), fields[0], int(fields[19])


@dataclass(frozen=True)
class _Stat:
    start_ticks: int


def _read_stat(pid: int) -> _Stat | None:
    """None for a process that does not exist or has ended and only waits for its parent to notice."""
    try:
        line = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    _, state, start_ticks = parse_stat(line)
    return None if state in "ZX" else _Stat(start_ticks)


def _read_pid_file(file: Path) -> Process | None:
    try:
        stat, boot, fingerprint = file.read_text().splitlines()
        pid, _, start_ticks = parse_stat(stat)
    except (OSError, ValueError, IndexError):
        return None
    return Process(pid=pid, start_ticks=start_ticks, boot_id=boot, fingerprint=fingerprint)


def _signal_all(started: Mapping[int, int], number: signal.Signals) -> None:
    for pid, start_ticks in started.items():
        stat = _read_stat(pid)
        if stat is not None and stat.start_ticks == start_ticks:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


def _wait_until_gone(started: Mapping[int, int], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while True:
        stats = {pid: _read_stat(pid) for pid in started}
        if not any(stat is not None and stat.start_ticks == started[pid] for pid, stat in stats.items()):
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)

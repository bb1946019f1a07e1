"""Ends a process at the n-th operation on a folder, from inside: the same each time, and nothing of the program is replaced.

Python announces to audit hooks what it is about to open, make, rename and remove. Before the chosen operation the process
kills itself, so what is on the volume is exactly what the operations before it left.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

OPERATIONS: Final = frozenset(
    {"open", "os.chmod", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate", "shutil.rmtree"}
)
"""Audit events whose first argument is the path that is read or changed."""
REPORT: Final = "killed before operation"
"""How the last line of a killed process's log begins: event and path follow."""
COUNT: Final = "operations on the volume:"
"""How the last line of a process that was not killed begins: their number follows."""


def arm(folder: Path, operation: int) -> Callable[[], int]:
    """Kill this process before its n-th operation on `folder` (from 1; 0 for never); returns what tells their number so far."""
    root = f"{folder}{os.sep}"
    count = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event not in OPERATIONS:
            return
        path = _path_of(event, arguments)
        if not path.startswith(root):
            return
        count += 1
        if count == operation:
            os.write(2, f"{REPORT} {event} {path}\n".encode())
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    return lambda: count


def _path_of(event: str, arguments: tuple[Any, ...]) -> str:
    """The path that an operation is about; empty if it has none (`open` of a descriptor)."""
    if not isinstance(arguments[0], str | bytes | os.PathLike):
        return ""
    path = os.fsdecode(arguments[0])
    # shutil.rmtree removes by name within a folder that it holds open.
    if event in ("os.remove", "os.rmdir") and arguments[1] >= 0:
        return str(Path(f"/proc/self/fd/{arguments[1]}").readlink() / path)
    return path

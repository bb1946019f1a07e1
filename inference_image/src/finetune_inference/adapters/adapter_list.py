"""The list of adapters that changes while the server runs: a file, looked at ten times a second.

Whoever may write the file says what is served: the one route that changes it (`promote`) obeys nobody else. In a pod it is a key
of a mounted ConfigMap (kubelet exchanges those whole, behind a symbolic link), elsewhere any file that is replaced by renaming.
The document is `{"adapters": [{"name": …, "path": …, "digest": …}]}`; without the file there are no such adapters.
"""

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from finetune_api.serving import AdapterList, ServedAdapter
from finetune_api.validation import problems_of, summary

log = logging.getLogger(__name__)

MAX_BYTES = 4 << 20
"""Longest list that is read: a ConfigMap has 1 MiB."""


class AdapterListError(ValueError):
    """The file cannot be used; the message says why."""


def read_adapter_list(path: Path) -> list[ServedAdapter]:
    """The adapters of the file; none if there is no file. Raises AdapterListError."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise AdapterListError(f"{path} cannot be read: {error}") from None
    if len(content) > MAX_BYTES:
        raise AdapterListError(f"{path} has more than {MAX_BYTES} bytes")
    try:
        return AdapterList.model_validate_json(content).adapters
    except ValidationError as error:
        problems = problems_of(error, model=AdapterList)
        raise AdapterListError(f"{path} is not a list of adapters: {summary(problems)}") from None


class Watcher:
    """A thread that calls `changed` after the file has changed, and whenever `also` says so."""

    def __init__(self, path: Path, seconds: float, changed: Callable[[], None], also: Callable[[], bool]) -> None:
        self._path = path
        self._seconds = seconds
        self._changed = changed
        self._also = also
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="adapter-list", daemon=True)
        self._seen = file_signature(path)

    def start(self) -> None:
        """Begin to watch. What changed since this object was made counts."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread, at once or after the change that it is at."""
        self._stopping.set()

    def _run(self) -> None:
        while not self._stopping.wait(self._seconds):
            seen = file_signature(self._path)
            if seen == self._seen and not self._also():
                continue
            self._seen = seen
            try:
                self._changed()
            except Exception:
                # The next change may be a better one; requests are answered meanwhile.
                log.exception("the change of %s could not be applied", self._path)


def file_signature(path: Path) -> object:
    """What tells a file from what it was before; None if there is none. Two system calls at most."""
    try:
        status = path.stat()
    except (OSError, ValueError):  # the latter for a path that no file can have
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size

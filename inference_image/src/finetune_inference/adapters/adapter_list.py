"""The adapter list: a file that may change while the server runs, checked ten times a second.

The writer of the file decides which adapters are served; the one route that changes them (`promote`) needs a token from the
file. In a pod the file is a key of a mounted ConfigMap, which the kubelet replaces as a whole behind a symbolic link; elsewhere
it is any file that is replaced by renaming. The document is `{"adapters": [{"name": …, "path": …, "digest": …}]}`. Without the
file, the list is empty.
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
"""Largest list that is read; a ConfigMap has at most 1 MiB."""


class AdapterListError(ValueError):
    """The file cannot be used; the message gives the reason."""


def read_adapter_list(path: Path) -> list[ServedAdapter]:
    """Return the adapters of the file; none without a file. Raises AdapterListError."""
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
    """Thread that calls `changed` after the file changed, and whenever `also` returns true."""

    def __init__(self, path: Path, seconds: float, changed: Callable[[], None], also: Callable[[], bool]) -> None:
        self._path = path
        self._seconds = seconds
        self._changed = changed
        self._also = also
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="adapter-list", daemon=True)
        self._seen = file_signature(path)

    def start(self) -> None:
        """Start to watch. A change since this object was made is noticed too."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread, at once or after the current call of `changed`."""
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
                # The server keeps answering, and the next change may succeed.
                log.exception("The change of %s could not be applied", self._path)


def file_signature(path: Path) -> object:
    """Return a value that differs after a change of the file; None without a file. Two system calls at most."""
    try:
        status = path.stat()
    except (OSError, ValueError):  # ValueError for a path that is not valid
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size

"""Read-ahead of the weights while Python imports torch, which takes longer than most reads."""

import logging
import os
from pathlib import Path

log = logging.getLogger(__name__)


def prefetch(folder: Path) -> int:
    """Ask the kernel to read a model's weights into the page cache. Returns the number of requested bytes, at once.

    This is a hint: a file that cannot be opened is skipped here and reported by the engine.
    """
    requested = 0
    for path in sorted(folder.glob("*.safetensors")):
        try:
            requested += _read_ahead(path)
        except OSError as error:
            log.debug("%s is not read ahead: %s", path, error)
    return requested


def _read_ahead(path: Path) -> int:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(descriptor).st_size
        os.posix_fadvise(descriptor, 0, size, os.POSIX_FADV_WILLNEED)
    finally:
        os.close(descriptor)
    return size

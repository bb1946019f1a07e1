"""Reading the weights from a volume while Python is still importing torch, which takes longer than most reads."""

import logging
import os
from pathlib import Path

log = logging.getLogger(__name__)


def prefetch(folder: Path) -> int:
    """Ask the kernel to read a model's weights into the page cache; returns at once, with the number of bytes asked for.

    A hint and nothing more: what cannot be opened now is complained about by whoever needs it.
    """
    asked = 0
    for path in sorted(folder.glob("*.safetensors")):
        try:
            asked += _ask_for(path)
        except OSError as error:
            log.debug("%s is not read ahead: %s", path, error)
    return asked


def _ask_for(path: Path) -> int:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(descriptor).st_size
        os.posix_fadvise(descriptor, 0, size, os.POSIX_FADV_WILLNEED)
    finally:
        os.close(descriptor)
    return size

"""What a process has to be told before torch is imported; what its environment says already wins."""

import ctypes
import os
from typing import Final

from finetune_model.process import OPENMP_DEFAULTS, pause_garbage_collection, set_defaults

DEVICES_ENV: Final = "CUDA_VISIBLE_DEVICES"
"""Environment variable with the accelerators that a process may use, separated by commas."""
DEFAULTS: Final = {
    **OPENMP_DEFAULTS,
    # transformers would use all visible accelerators by DataParallel, which is slower than one and changes the batch.
    DEVICES_ENV: "0",
    # Rows are tokenized in batches by all cores. Said aloud, as tokenizers would otherwise warn at every later fork.
    "TOKENIZERS_PARALLELISM": "true",
}


MALLOC: Final = {
    # glibc gives the end of its heap back whenever a pass has ended, and the next one faults it in anew, page by page: a
    # tenth of a step's time on short rows (M_TRIM_THRESHOLD).
    -1: (1 << 31) - 1,
    # Larger blocks are mapped one by one. Glibc raises this limit by itself up to 32 MiB; in one heap, passes of unlike size
    # then leave holes that took a tenth more memory. At 1 MiB it is a fifth less, but a step takes a quarter more time
    # (M_MMAP_THRESHOLD).
    -3: 4 << 20,
}
"""Parameters of glibc's mallopt(3)."""


def prepare_environment() -> None:
    """Set the defaults of this process. Of the accelerators of a machine, each process of torchrun's has its own.

    Garbage is not collected until `resume_garbage_collection`.
    """
    pause_garbage_collection()
    if local_rank := int(os.environ.get("LOCAL_RANK") or 0):
        devices = os.environ.get(DEVICES_ENV, "").split(",")
        os.environ[DEVICES_ENV] = devices[local_rank] if local_rank < len(devices) else str(local_rank)
    set_defaults(DEFAULTS)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt and not any(name.startswith("MALLOC_") for name in os.environ):
        for parameter, number in MALLOC.items():
            mallopt(parameter, number)

"""Environment of the process, set before importing torch. Existing environment variables win."""

import ctypes
import os
from typing import Final

from finetune_model.process import OPENMP_DEFAULTS, pause_garbage_collection, set_defaults

DEVICES_ENV: Final = "CUDA_VISIBLE_DEVICES"
"""Environment variable with the accelerators that a process may use, comma-separated."""
DEFAULTS: Final = {
    **OPENMP_DEFAULTS,
    # transformers would use all visible accelerators by DataParallel, which is slower than one and changes the batch.
    DEVICES_ENV: "0",
    # Rows are tokenized in batches by all cores. Set explicitly, because tokenizers would otherwise warn at every fork.
    "TOKENIZERS_PARALLELISM": "true",
}


MALLOC: Final = {
    # M_TRIM_THRESHOLD: glibc returns the end of its heap to the kernel after every pass, and the next pass faults it in
    # again, page by page: a tenth of a step's time on short rows.
    -1: (1 << 31) - 1,
    # M_MMAP_THRESHOLD: larger blocks are mapped one by one. glibc raises this threshold up to 32 MiB; passes of different
    # size then fragment the heap, which took a tenth more memory. 1 MiB takes a fifth less memory, but a step takes a
    # quarter more time.
    -3: 4 << 20,
}
"""Values of glibc's mallopt(3) by parameter, in bytes."""


def prepare_environment() -> None:
    """Set environment variables, malloc and garbage collection; each of torchrun's local ranks gets its own accelerator.

    Garbage collection is paused until `resume_garbage_collection`.
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

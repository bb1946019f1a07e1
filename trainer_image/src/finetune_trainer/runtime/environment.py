"""What a process has to be told before torch is imported; what its environment says already wins."""

import ctypes
import gc
import os
from typing import Final

DEVICES_ENV: Final = "CUDA_VISIBLE_DEVICES"
"""Environment variable with the accelerators that a process may use, separated by commas."""
DEFAULTS: Final = {
    # Pods share their nodes' cores: CPU is a request, not a limit. OpenMP's threads spin while they wait, and a spinning thread
    # keeps the very core that the thread it waits for needs: with a second busy program per core, training a 135M model on
    # two cores went from 140 tokens/s to 9. Threads that sleep at once got 70, but only 90 on idle cores. GNU's OpenMP, which
    # torch brings, can spin for some microseconds and then sleep: 45 and 140.
    "GOMP_SPINCOUNT": "3000",
    # The same for other OpenMPs, which know only the extremes.
    "OMP_WAIT_POLICY": "PASSIVE",
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

    Garbage is not collected until `modules_are_imported`.
    """
    # Importing makes hundreds of thousands of objects, all of which stay. A fifth of that time was spent looking through them.
    gc.disable()
    if local_rank := int(os.environ.get("LOCAL_RANK") or 0):
        devices = os.environ.get(DEVICES_ENV, "").split(",")
        os.environ[DEVICES_ENV] = devices[local_rank] if local_rank < len(devices) else str(local_rank)
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt and not any(name.startswith("MALLOC_") for name in os.environ):
        for parameter, number in MALLOC.items():
            mallopt(parameter, number)


def modules_are_imported() -> None:
    """Collect garbage from now on, and look only at what is made from now on, if `prepare_environment` was called before."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()

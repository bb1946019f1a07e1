"""What has to be in the environment before torch is imported; each value that is set already wins."""

import os
from typing import Final

DEFAULTS: Final = {
    # Pods share their nodes' cores: CPU is a request, not a limit. OpenMP's threads spin while they wait, and a spinning thread
    # keeps the very core that the thread it waits for needs: with a second busy program per core, training a 135M model on
    # two cores went from 140 tokens/s to 9. Threads that sleep at once got 70, but only 90 on idle cores. GNU's OpenMP, which
    # torch brings, can spin for some microseconds and then sleep: 45 and 140.
    "GOMP_SPINCOUNT": "3000",
    # The same for other OpenMPs, which know only the extremes.
    "OMP_WAIT_POLICY": "PASSIVE",
    # transformers would use all visible accelerators by DataParallel, which is slower than one and changes the batch.
    "CUDA_VISIBLE_DEVICES": "0",
    # Rows are tokenised in batches by all cores. Said aloud, as tokenizers would otherwise warn at every later fork.
    "TOKENIZERS_PARALLELISM": "true",
}


def prepare_environment() -> None:
    """Set the defaults of this process."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)

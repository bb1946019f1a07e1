"""Mount points of volumes in training and server pods."""

from typing import Final

MODELS_MOUNT: Final = "/models"
"""Mount point of the claim that holds the base model (read-only)."""
DATASETS_MOUNT: Final = "/datasets"
"""Mount point of the training set's claim or ConfigMap (read-only)."""
EVALUATION_MOUNT: Final = "/evaluation"
"""Mount point of the evaluation set's claim or ConfigMap (read-only)."""
INITIAL_ADAPTER_MOUNT: Final = "/initial-adapter"
"""Mount point of the claim with the adapter that training continues from (read-only)."""
ADAPTERS_MOUNT: Final = "/adapters"
"""Mount point of the output claim: read-write in the trainer, read-only in the server."""
SCRATCH_MOUNT: Final = "/scratch"
"""Mount point of an emptyDir for HOME, TMPDIR and caches, because the root file system is read-only."""

"""Names that two or more packages share: API group, kinds, paths, environment variables, task name, exit codes.

Names that only one package uses are defined in that package.
"""

from enum import IntEnum
from typing import Final

GROUP: Final = "finetune.dev"
"""API group of both kinds. KServe has an InferenceService too, so name the group when in doubt."""
VERSION: Final = "v1alpha1"
"""The only served and stored version."""
API_VERSION: Final = f"{GROUP}/{VERSION}"
"""`apiVersion` of both kinds."""

FINETUNE_JOB_KIND: Final = "FinetuneJob"
FINETUNE_JOB_PLURAL: Final = "finetunejobs"
INFERENCE_SERVICE_KIND: Final = "InferenceService"
INFERENCE_SERVICE_PLURAL: Final = "inferenceservices"


CONFIG_DIRECTORY: Final = "/etc/finetune"
CONFIG_PATH: Final = f"{CONFIG_DIRECTORY}/config.json"
"""Path of the configuration file in training and server pods."""
ADAPTER_LIST_MOUNT: Final = "/etc/finetune-adapters"
"""Mount point of the ConfigMap with the AdapterList in the server."""
ADAPTER_LIST_FILE: Final = "adapters.json"
"""Only key of that ConfigMap."""
TERMINATION_LOG: Final = "/dev/termination-log"
"""File to which `validate` and the trainer write their Outcome; the kubelet copies at most `MAX_TERMINATION_BYTES` into the pod's status."""
MAX_TERMINATION_BYTES: Final = 4096
"""Largest termination message in bytes, a limit of the kubelet per container."""

TASK_NAME: Final = "finetune_trainer.tasks.finetuning_task"
"""Name of the Celery task. The operator never imports the trainer."""
BROKER_URL_ENV: Final = "FINETUNE_BROKER_URL"
"""Environment variable with the Redis URL for Celery; unset or empty means training without a broker."""
DATASET_TOKEN_ENV: Final = "FINETUNE_DATASET_TOKEN"  # noqa: S105 - a name
"""Environment variable with the token for an https:// or hf:// dataset, from the Secret that dataset.secretRef names."""
ALLOW_PRIVATE_SOURCES_ENV: Final = "FINETUNE_ALLOW_PRIVATE_SOURCES"
"""Environment variable that allows datasets and experiment trackers at addresses that are not public."""
DOWNLOADS_ENV: Final = "FINETUNE_DOWNLOADS"
"""Environment variable with the folder where `validate` stores downloaded rows for the trainer."""
GPU_MEMORY_ENV: Final = "FINETUNE_GPU_MEMORY"
"""Environment variable with the memory in bytes of the trainer's GPU, for `validate`, which has no GPU."""
PROMOTE_PATH: Final = "/promote"
"""HTTP path at which a server accepts a PromotionRequest."""
SERVER_PORT: Final = 8000
"""Port of the inference container and of its Service (named `http`)."""
SERVER_ENGINE_ENV: Final = "FINETUNE_SERVER_ENGINE"
"""Environment variable with the engine of the server: transformers or vllm."""
SERVER_DRAIN_DELAY_ENV: Final = "FINETUNE_SERVER_DRAIN_DELAY_SECONDS"
"""Environment variable with the seconds for which the server keeps accepting requests after SIGTERM."""
SERVER_DRAIN_ENV: Final = "FINETUNE_SERVER_DRAIN_SECONDS"
"""Environment variable with the seconds that running requests get after that."""
DEFAULT_ADAPTERS_CLAIM: Final = "finetune-adapters"
"""Claim that receives adapters when a job names none; the operator creates it if it does not exist."""


class ExitCode(IntEnum):
    """Exit codes of the trainer. The Outcome says more; the codes remain when the termination message is lost."""

    SUCCEEDED = 0
    BUG = 1
    """An unexpected exception; another attempt may succeed."""
    CONFIG_INVALID = 2
    DATASET_INVALID = 3
    MODEL_INVALID = 4
    STORAGE_FULL = 28
    """The number of ENOSPC."""
    FENCED = 75
    """A newer attempt exists, so this one stopped writing. The number is EX_TEMPFAIL of sysexits.h."""
    INTERRUPTED = 143
    """SIGTERM arrived; a checkpoint was committed if there was progress to save."""


def task_id(job_uid: str, attempt: int) -> str:
    """Return the Celery task id of an attempt. It is deterministic, so the operator can look up progress without a message."""
    return f"{job_uid}-{attempt}"


def queue_name(job_uid: str, attempt: int) -> str:
    """Return the Celery queue of an attempt. Each has its own, so that no pod can take another's message."""
    return f"celery-finetune-{job_uid}-{attempt}"

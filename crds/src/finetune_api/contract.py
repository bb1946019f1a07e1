"""Names that two or more packages must spell alike: group, kinds, paths, environment variables, task name, exit codes.

A name that one package alone uses stands in that package.
"""

from enum import IntEnum
from typing import Final

GROUP: Final = "finetune.dev"
"""API group of both kinds. KServe has an InferenceService too, in its own group: always say the group when in doubt."""
VERSION: Final = "v1alpha1"
"""The only served and stored version."""
API_VERSION: Final = f"{GROUP}/{VERSION}"
"""`apiVersion` of every manifest of ours."""

FINETUNE_JOB_KIND: Final = "FinetuneJob"
FINETUNE_JOB_PLURAL: Final = "finetunejobs"
INFERENCE_SERVICE_KIND: Final = "InferenceService"
INFERENCE_SERVICE_PLURAL: Final = "inferenceservices"


CONFIG_DIRECTORY: Final = "/etc/finetune"
CONFIG_PATH: Final = f"{CONFIG_DIRECTORY}/config.json"
"""Where both pods find their configuration."""
ADAPTER_LIST_MOUNT: Final = "/etc/finetune-adapters"
"""Mount point of the ConfigMap with the AdapterList in the server."""
ADAPTER_LIST_FILE: Final = "adapters.json"
"""Its only key."""
TERMINATION_LOG: Final = "/dev/termination-log"
"""Where `validate` and the trainer each write their Outcome; the kubelet copies at most `MAX_TERMINATION_BYTES` of it into the pod's status."""
MAX_TERMINATION_BYTES: Final = 4096
"""Limit of the kubelet per container."""

TASK_NAME: Final = "finetune_trainer.tasks.finetuning_task"
"""Name of the Celery task. The operator never imports the trainer."""
BROKER_URL_ENV: Final = "FINETUNE_BROKER_URL"
"""Environment variable with the Redis URL for Celery; unset or empty means: train without a broker."""
DATASET_TOKEN_ENV: Final = "FINETUNE_DATASET_TOKEN"  # noqa: S105 - a name
"""Environment variable with the token for an https:// or hf:// dataset, from the Secret that dataset.secretRef names."""
ALLOW_PRIVATE_SOURCES_ENV: Final = "FINETUNE_ALLOW_PRIVATE_SOURCES"
"""Environment variable that lets datasets come from, and figures go to, addresses that are not public."""
DOWNLOADS_ENV: Final = "FINETUNE_DOWNLOADS"
"""Environment variable with the folder in which `validate` leaves downloaded rows for the trainer."""
GPU_MEMORY_ENV: Final = "FINETUNE_GPU_MEMORY"
"""Environment variable with the bytes of the GPU that the trainer will have, for `validate`, which has none."""
PROMOTE_PATH: Final = "/promote"
"""Where a server takes a PromotionRequest."""
SERVER_PORT: Final = 8000
"""Port of the inference container and of its Service (named `http`)."""
SERVER_ENGINE_ENV: Final = "FINETUNE_SERVER_ENGINE"
"""Environment variable with the engine of the inference container: transformers or vllm."""
SERVER_DRAIN_DELAY_ENV: Final = "FINETUNE_SERVER_DRAIN_DELAY_SECONDS"
"""Environment variable with the seconds between SIGTERM and the closed port of the inference container."""
SERVER_DRAIN_ENV: Final = "FINETUNE_SERVER_DRAIN_SECONDS"
"""Environment variable with the seconds that running answers get after that."""
DEFAULT_ADAPTERS_CLAIM: Final = "finetune-adapters"
"""Claim that receives adapters when a job names none; the operator creates it if the namespace has none."""


class ExitCode(IntEnum):
    """Exit codes of the trainer. The Outcome says more; these remain when the termination message is lost."""

    SUCCEEDED = 0
    BUG = 1
    """An exception nobody planned for; worth another attempt."""
    CONFIG_INVALID = 2
    DATASET_INVALID = 3
    MODEL_INVALID = 4
    STORAGE_FULL = 28
    """ENOSPC's own number."""
    FENCED = 75
    """A newer attempt exists (EX_TEMPFAIL of sysexits.h): this one wrote nothing more."""
    INTERRUPTED = 143
    """SIGTERM arrived; a checkpoint was committed if there was a step to keep."""


def task_id(job_uid: str, attempt: int) -> str:
    """Celery task id of an attempt: deterministic, so the operator can look up progress it never asked for."""
    return f"{job_uid}-{attempt}"


def queue_name(job_uid: str, attempt: int) -> str:
    """Celery queue of an attempt: its own, so no pod can take another's message."""
    return f"celery-finetune-{job_uid}-{attempt}"

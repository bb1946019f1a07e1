"""Names that more than one part must spell alike: group, kinds, labels, annotations, mount points, task name, exit codes."""

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

LABEL_MANAGED_BY: Final = "app.kubernetes.io/managed-by"
"""Set to `MANAGED_BY` on every child; the operator's watches select on it."""
MANAGED_BY: Final = "finetune-operator"
LABEL_NAME: Final = "app.kubernetes.io/name"
"""`finetune-trainer` or `finetune-inference` on children; network policies of the chart select on it."""
TRAINER_APP: Final = "finetune-trainer"
SERVER_APP: Final = "finetune-inference"
LABEL_JOB_NAME: Final = f"{GROUP}/job-name"
"""Name of the FinetuneJob that a child belongs to."""
LABEL_JOB_UID: Final = f"{GROUP}/job-uid"
"""Uid of the FinetuneJob: children are found by uid, so that a new job of an old name never adopts old children."""
LABEL_ATTEMPT: Final = f"{GROUP}/attempt"
"""Attempt number of a training Job and its pod, from 1."""
LABEL_SERVICE_NAME: Final = f"{GROUP}/service-name"
"""Name of the InferenceService that a child belongs to."""
LABEL_QUEUE_NAME: Final = "kueue.x-k8s.io/queue-name"
"""Kueue's label: a Job that carries it is admitted by Kueue."""

ANNOTATION_CONFIG: Final = f"{GROUP}/config"
"""Pod annotation that holds the TrainingConfig or ServingConfig; the downward API mounts it as `CONFIG_PATH`.

An annotation rather than a ConfigMap: one write less, nothing to clean up, and a pod can never see another
generation's configuration.
"""
MAX_CONFIG_BYTES: Final = 200_000
"""Longest configuration that is put into the annotation: the API server caps all annotations together at 256 KiB."""
ANNOTATION_ADAPTER_LIST: Final = f"{GROUP}/adapter-list"
"""Pod annotation with the hash of the AdapterList that the pod should have: a changed pod is one whose volumes the kubelet
refreshes at once, where a changed ConfigMap alone waits for its next round, up to a minute."""
CONDITION_ADAPTERS_VERIFIED: Final = f"{GROUP}/adapters-verified"
"""Readiness gate of the pods of a Rolling service: a pod gets no traffic before the operator has set this condition to True."""
ANNOTATION_DESIRED_HASH: Final = f"{GROUP}/desired-hash"
"""Hash of the manifest as the operator built it: equal hash and no drift means there is nothing to apply."""

CONFIG_DIRECTORY: Final = "/etc/finetune"
CONFIG_PATH: Final = f"{CONFIG_DIRECTORY}/config.json"
"""Where both pods find their configuration."""
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
ADAPTER_LIST_MOUNT: Final = "/etc/finetune-adapters"
"""Mount point of the ConfigMap with the AdapterList in the server."""
ADAPTER_LIST_FILE: Final = "adapters.json"
"""Its only key."""
SCRATCH_MOUNT: Final = "/scratch"
"""emptyDir of both pods: HOME, TMPDIR and caches. The root file system is read-only."""
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
OBJECT_STORE_ENV: Final = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_REGION",
    "AWS_ENDPOINT_URL",
)
"""Environment variables of an s3:// dataset, each from the key of the same name in dataset.secretRef's Secret."""
MLFLOW_TOKEN_ENV: Final = "MLFLOW_TRACKING_TOKEN"  # noqa: S105 - a name
"""MLflow's own environment variable for a token, from the key that tracking.mlflow.secretRef names."""
MLFLOW_LOGIN_ENV: Final = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
"""MLflow's own environment variables for a login, each from the key of the same name in that Secret."""
WANDB_KEY_ENV: Final = "WANDB_API_KEY"
"""Weights & Biases' own environment variable for the API key, from the key that tracking.wandb.secretRef names."""
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

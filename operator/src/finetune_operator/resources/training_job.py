"""The Kubernetes Job of one attempt, and the TrainingConfig that its pod is given."""

import copy
from typing import Final

from finetune_api.contract import BROKER_URL_ENV, GPU_MEMORY_ENV, TERMINATION_LOG
from finetune_api.reasons import Reason
from finetune_api.sources import parse_source
from finetune_api.training import (
    DatasetConfig,
    InitialAdapterConfig,
    JobIdentity,
    ModelConfig,
    OutputConfig,
    RowsConfig,
    TrainingConfig,
)
from finetune_api.v1alpha1 import Evaluation, EvaluationSettings, FinetuneJob, Resources
from finetune_operator.errors import StalledError
from finetune_operator.resources import Manifest
from finetune_operator.resources.annotations import ANNOTATION_CONFIG, MAX_CONFIG_BYTES
from finetune_operator.resources.labels import LABEL_QUEUE_NAME, owner_reference, training_labels
from finetune_operator.resources.mounts import ADAPTERS_MOUNT, DATASETS_MOUNT, EVALUATION_MOUNT, INITIAL_ADAPTER_MOUNT
from finetune_operator.resources.names import training_job_name
from finetune_operator.resources.pods import (
    CONTAINER_SECURITY,
    Volumes,
    common_env,
    container_resources,
    dataset_env,
    model_path,
    pod_spec,
    rows_path,
    tracking_env,
)
from finetune_operator.settings import Settings

TRAINER_CONTAINER: Final = "trainer"
VALIDATE_CONTAINER: Final = "validate"
"""Runs first and says what is wrong with spec, model or dataset before a GPU is in use."""
VALIDATE_ARGS: Final = ("validate",)
"""Its command of the trainer's image; the chart's admission policy allows no other arguments."""
GRACE_SECONDS: Final = 60
"""Time to commit a checkpoint after SIGTERM."""
NODE_LOSS_TOLERATIONS: Final = tuple(
    {"key": f"node.kubernetes.io/{taint}", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 30}
    for taint in ("not-ready", "unreachable")
)
"""Kubernetes' own default waits 300 s before it gives up the pod of a lost node; a checkpoint makes moving cheap."""


def build_training_job(job: FinetuneJob, attempt: int, settings: Settings) -> Manifest:
    """The Job of attempt number `attempt`. Raises StalledError if the configuration is too large for its annotation."""
    labels = training_labels(job, attempt)
    config = encoded_config(build_training_config(job, attempt))
    spec: Manifest = {
        # Attempts are the operator's: the Job controller makes one pod, and a second one never.
        "backoffLimit": 0,
        "podReplacementPolicy": "Failed",
        "template": {
            "metadata": {"labels": labels, "annotations": {ANNOTATION_CONFIG: config}},
            "spec": {**build_training_pod_spec(job, settings), "restartPolicy": "Never"},
        },
    }
    job_labels = dict(labels)
    if job.spec.queue_name is not None:
        # From here on `suspend` belongs to Kueue.
        job_labels[LABEL_QUEUE_NAME] = job.spec.queue_name
        spec["suspend"] = True
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": training_job_name(job.metadata.name, job.metadata.uid, attempt),
            "namespace": job.metadata.namespace,
            "labels": job_labels,
            "ownerReferences": [owner_reference(job)],
        },
        "spec": spec,
    }


def build_training_pod_spec(job: FinetuneJob, settings: Settings) -> Manifest:
    """The pod of an attempt: `validate`, then the trainer, which both read everything else from the configuration."""
    volumes = Volumes()
    evaluation = job.spec.evaluation.source if job.spec.evaluation else None
    # The writable mount first: it gives its name to a claim that holds the model too.
    volumes.claim("adapters", job.spec.output.claim, ADAPTERS_MOUNT, read_only=False)
    volumes.model(job.spec.model)
    volumes.rows("datasets", job.spec.dataset.source, DATASETS_MOUNT)
    volumes.rows("evaluation", evaluation, EVALUATION_MOUNT)
    if (initial := job.initial_adapter_uri) is not None:
        volumes.claim("initial-adapter", parse_source(initial).name, INITIAL_ADAPTER_MOUNT, read_only=True)
    volumes.configuration()
    volumes.scratch(settings.scratch_size)
    sources = [uri for uri in (job.spec.dataset.source, evaluation) if uri]
    broker = {"name": settings.broker_secret_name, "key": settings.broker_secret_key, "optional": True}
    env = [
        *common_env(job.spec.model, other_sources=sources),
        *dataset_env(sources, job.spec.dataset.secret_ref, settings, tracked=job.spec.tracking is not None),
    ]
    without_gpu = job.spec.resources.model_copy(update={"gpu": 0})
    validate = {
        **_container(VALIDATE_CONTAINER, [*env, *_gpu_env(job, settings)], without_gpu, volumes, settings),
        "args": list(VALIDATE_ARGS),
    }
    broker_env = {"name": BROKER_URL_ENV, "valueFrom": {"secretKeyRef": broker}}
    trainer_env = [*env, *tracking_env(job.spec.tracking), broker_env]
    trainer = _container(TRAINER_CONTAINER, trainer_env, job.spec.resources, volumes, settings)
    tolerations = [dict(toleration) for toleration in NODE_LOSS_TOLERATIONS]
    return pod_spec(settings, trainer, volumes, grace_seconds=GRACE_SECONDS, tolerations=tolerations, before=validate)


def _container(name: str, env: list[Manifest], resources: Resources, volumes: Volumes, settings: Settings) -> Manifest:
    return {
        "name": name,
        "image": settings.trainer_image,
        "imagePullPolicy": settings.image_pull_policy,
        "env": copy.deepcopy(env),
        "resources": container_resources(resources),
        "securityContext": copy.deepcopy(dict(CONTAINER_SECURITY)),
        "terminationMessagePath": TERMINATION_LOG,
        # A trainer that was killed leaves no Outcome; the end of its log is better than nothing.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": copy.deepcopy(volumes.mounts),
    }


def _gpu_env(job: FinetuneJob, settings: Settings) -> list[Manifest]:
    """What `validate` is told of the GPU that it does not have: its memory, or that nobody knows it."""
    if not job.spec.resources.gpu:
        return []
    return [{"name": GPU_MEMORY_ENV, "value": str(settings.gpu_memory_bytes)}]


def build_training_config(job: FinetuneJob, attempt: int) -> TrainingConfig:
    """Everything that the trainer is told."""
    spec = job.spec
    metadata = job.metadata
    return TrainingConfig(
        job=JobIdentity(namespace=metadata.namespace, name=metadata.name, uid=metadata.uid, attempt=attempt),
        model=ModelConfig(path=model_path(spec.model), source=spec.model.source, revision=spec.model.revision),
        dataset=_dataset(job),
        evaluation=_evaluation(spec.evaluation),
        evaluation_settings=_evaluation_settings(spec.evaluation),
        initial_adapter=_initial_adapter(job),
        lora=spec.method.lora,
        dpo=spec.method.dpo,
        hyperparameters=spec.hyperparameters,
        checkpoint=spec.checkpoint,
        tracking=spec.tracking,
        output=OutputConfig(directory=ADAPTERS_MOUNT, adapter_name=job.adapter_name, claim=spec.output.claim),
        processes=spec.resources.gpu if spec.resources.gpu > 1 else None,
    )


def encoded_config(config: TrainingConfig) -> str:
    """The configuration as one line of JSON. Raises StalledError if it cannot travel in an annotation."""
    text = config.model_dump_json(by_alias=True, exclude_none=True)
    if (size := len(text.encode())) > MAX_CONFIG_BYTES:
        raise StalledError(
            Reason.SPEC_INVALID,
            f"The inline rows make a configuration of {size} bytes; at most {MAX_CONFIG_BYTES} are possible. "
            "Put the rows into a ConfigMap or on a claim and name it in dataset.source.",
        )
    return text


def _dataset(job: FinetuneJob) -> DatasetConfig:
    dataset, evaluation = job.spec.dataset, job.spec.evaluation
    return DatasetConfig(
        inline=dataset.inline,
        path=rows_path(dataset.source, DATASETS_MOUNT) if dataset.source else None,
        source=dataset.source,
        format=dataset.format,
        columns=dataset.columns,
        evaluation_fraction=evaluation.fraction if evaluation else None,
    )


def _initial_adapter(job: FinetuneJob) -> InitialAdapterConfig | None:
    uri, pinned = job.initial_adapter_uri, job.status.initial_adapter
    if uri is None:
        return None
    path = f"{INITIAL_ADAPTER_MOUNT}/{parse_source(uri).path}"
    return InitialAdapterConfig(path=path, source=uri, digest=pinned.digest if pinned else None)


def _evaluation(evaluation: Evaluation | None) -> RowsConfig | None:
    if evaluation is None or evaluation.fraction is not None:
        return None
    path = rows_path(evaluation.source, EVALUATION_MOUNT) if evaluation.source else None
    return RowsConfig(inline=evaluation.inline, path=path, source=evaluation.source)


def _evaluation_settings(evaluation: Evaluation | None) -> EvaluationSettings:
    names = set(EvaluationSettings.model_fields)
    return EvaluationSettings.model_validate(evaluation.model_dump(include=names) if evaluation else {})

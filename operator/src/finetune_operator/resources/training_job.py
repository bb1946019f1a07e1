"""Kubernetes Job of an attempt, and the TrainingConfig of its pod."""

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
    SourceConfig,
    TrainingConfig,
)
from finetune_api.v1alpha1 import Evaluation, EvaluationSettings, FinetuneJob, Resources, WeightedSource
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
    source_mount,
    tracking_env,
)
from finetune_operator.settings import Settings

TRAINER_CONTAINER: Final = "trainer"
VALIDATE_CONTAINER: Final = "validate"
"""Init container that checks spec, model and dataset before the trainer starts."""
VALIDATE_ARGS: Final = ("validate",)
"""Arguments of that container; the chart's admission policy allows no others."""
GRACE_SECONDS: Final = 60
"""Seconds to commit a checkpoint after SIGTERM."""
NODE_LOSS_TOLERATIONS: Final = tuple(
    {"key": f"node.kubernetes.io/{taint}", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 30}
    for taint in ("not-ready", "unreachable")
)
"""Tolerations that evict the pod of a lost node after 30 s instead of the default 300 s, because resuming from a checkpoint is cheap."""


def build_training_job(job: FinetuneJob, attempt: int, settings: Settings) -> Manifest:
    """Build the Job of attempt number `attempt`. Raises StalledError if the configuration is too large for its annotation."""
    labels = training_labels(job, attempt)
    config = encoded_config(build_training_config(job, attempt))
    spec: Manifest = {
        # The operator makes the attempts: the Job controller must create one pod and never a second one.
        "backoffLimit": 0,
        "podReplacementPolicy": "Failed",
        "template": {
            "metadata": {"labels": labels, "annotations": {ANNOTATION_CONFIG: config}},
            "spec": {**build_training_pod_spec(job, settings), "restartPolicy": "Never"},
        },
    }
    job_labels = dict(labels)
    if job.spec.queue_name is not None:
        # Kueue sets `suspend` from here on.
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
    """Build the pod of an attempt: `validate`, then the trainer. Both read everything else from the configuration."""
    volumes = Volumes()
    evaluation = job.spec.evaluation.source if job.spec.evaluation else None
    # The writable mount comes first, because it names the volume of a claim that also holds the model.
    volumes.claim("adapters", job.spec.output.claim, ADAPTERS_MOUNT, read_only=False)
    volumes.model(job.spec.model)
    volumes.rows("datasets", job.spec.dataset.source, DATASETS_MOUNT)
    for index, part in enumerate(job.spec.dataset.sources or ()):
        volumes.rows(f"datasets-{index}", part.source, source_mount(index))
    volumes.rows("evaluation", evaluation, EVALUATION_MOUNT)
    if (initial := job.initial_adapter_uri) is not None:
        volumes.claim("initial-adapter", parse_source(initial).name, INITIAL_ADAPTER_MOUNT, read_only=True)
    volumes.configuration()
    volumes.scratch(settings.scratch_size)
    sources = [uri for uri in (*job.spec.dataset.uris, evaluation) if uri]
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
        # A killed trainer leaves no Outcome; the end of its log is used instead.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": copy.deepcopy(volumes.mounts),
    }


def _gpu_env(job: FinetuneJob, settings: Settings) -> list[Manifest]:
    """Return the variable with the memory of the trainer's GPU for `validate`, which has no GPU; 0 means unknown."""
    if not job.spec.resources.gpu:
        return []
    return [{"name": GPU_MEMORY_ENV, "value": str(settings.gpu_memory_bytes)}]


def build_training_config(job: FinetuneJob, attempt: int) -> TrainingConfig:
    """Build the whole configuration of the trainer."""
    spec = job.spec
    metadata = job.metadata
    return TrainingConfig(
        job=JobIdentity(namespace=metadata.namespace, name=metadata.name, uid=metadata.uid, attempt=attempt),
        model=ModelConfig(path=model_path(spec.model), source=spec.model.source, revision=spec.model.revision),
        dataset=_dataset(job),
        chat=spec.chat,
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
    """Return the configuration as one line of JSON. Raises StalledError if it does not fit into an annotation."""
    text = config.model_dump_json(by_alias=True, exclude_none=True)
    if (size := len(text.encode())) > MAX_CONFIG_BYTES:
        raise StalledError(
            Reason.SPEC_INVALID,
            f"The configuration with its inline rows has {size} bytes; the limit is {MAX_CONFIG_BYTES}. "
            "Put the rows into a ConfigMap or on a claim, and set dataset.source to its URI.",
        )
    return text


def _dataset(job: FinetuneJob) -> DatasetConfig:
    dataset, evaluation = job.spec.dataset, job.spec.evaluation
    return DatasetConfig(
        inline=dataset.inline,
        path=rows_path(dataset.source, DATASETS_MOUNT) if dataset.source else None,
        source=dataset.source,
        sources=[_source(part, source_mount(index)) for index, part in enumerate(dataset.sources or ())] or None,
        format=dataset.format,
        columns=dataset.columns,
        max_rows=dataset.max_rows,
        shuffle=dataset.shuffle,
        strict=dataset.strict or None,
        evaluation_fraction=evaluation.fraction if evaluation else None,
    )


def _source(part: WeightedSource, mount: str) -> SourceConfig:
    return SourceConfig(
        path=rows_path(part.source, mount),
        source=part.source,
        weight=part.weight,
        max_rows=part.max_rows,
        columns=part.columns,
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

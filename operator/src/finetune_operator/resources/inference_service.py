"""What a FinetuneJob that serves its adapter asks for: an InferenceService of its own, or an adapter more in one that exists."""

import math
from typing import Final, get_args

from finetune_api.contract import API_VERSION, INFERENCE_SERVICE_KIND
from finetune_api.v1alpha1 import (
    AdapterReference,
    AdapterStatus,
    FinetuneJob,
    GateMetric,
    InferenceServiceSpec,
    Metric,
    Serve,
)
from finetune_operator.resources import Manifest
from finetune_operator.resources.labels import (
    LABEL_JOB_NAME,
    LABEL_JOB_UID,
    LABEL_MANAGED_BY,
    MANAGED_BY,
    owner_reference,
)

DRIFT_FIELDS: Final = get_args(GateMetric)
"""Metrics that later versions may be compared by."""
UNMANAGED_FIELDS: Final = {"adapters_from", "engine", "merge_adapter", "rollout"}
"""Fields that no job says: whether later jobs may add adapters, what computes, and how adapters get into the pods. Stating
their defaults would revert whoever edits them."""


def build_adapter_reference(job: FinetuneJob, adapter: AdapterStatus) -> AdapterReference:
    """The job's adapter, with the fingerprint that proves it and the metrics that the next version is compared by."""
    return AdapterReference(
        name=adapter.name,
        source=adapter.uri,
        digest=adapter.digest,
        fingerprint=adapter.fingerprint,
        metrics=[
            Metric(name=m.name, value=m.value)
            for m in job.status.metrics
            if m.name in DRIFT_FIELDS and math.isfinite(float(m.value))
        ],
    )


def build_addition(job: FinetuneJob, adapter: AdapterStatus) -> Manifest:
    """The part of an InferenceService that is the job's adapter; to be applied by a manager of that adapter alone."""
    return {
        "apiVersion": API_VERSION,
        "kind": INFERENCE_SERVICE_KIND,
        "metadata": {"name": job.service_name, "namespace": job.metadata.namespace},
        "spec": {"adapters": [build_adapter_reference(job, adapter).to_dict()]},
    }


def build_inference_service(job: FinetuneJob, serve: Serve, adapter: AdapterStatus) -> Manifest:
    """The endpoint for the job's adapter, with the fingerprint that proves it."""
    spec = InferenceServiceSpec(
        model=job.spec.model,
        adapters=[build_adapter_reference(job, adapter)],
        replicas=serve.replicas,
        resources=serve.resources,
    )
    labels = {
        LABEL_MANAGED_BY: MANAGED_BY,
        LABEL_JOB_NAME: job.metadata.name,
        LABEL_JOB_UID: job.metadata.uid,
    }
    return {
        "apiVersion": API_VERSION,
        "kind": INFERENCE_SERVICE_KIND,
        "metadata": {
            "name": job.service_name,
            "namespace": job.metadata.namespace,
            "labels": labels,
            "ownerReferences": [owner_reference(job)],
        },
        "spec": spec.model_dump(mode="json", by_alias=True, exclude_none=True, exclude=UNMANAGED_FIELDS),
    }

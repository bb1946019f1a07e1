"""Endpoint of a FinetuneJob: an InferenceService that the job owns, or its adapter added to an existing one."""

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

COMPARED_METRICS: Final = get_args(GateMetric)
"""Metrics by which later versions of an adapter can be compared."""
UNMANAGED_FIELDS: Final = {"adapters_from", "engine", "merge_adapter", "rollout"}
"""Fields that a job leaves to others: applying their defaults would revert the edits of users."""


def build_adapter_reference(job: FinetuneJob, adapter: AdapterStatus) -> AdapterReference:
    """Build the reference to the job's adapter, with its fingerprint and the metrics for comparing the next version."""
    return AdapterReference(
        name=adapter.name,
        source=adapter.uri,
        digest=adapter.digest,
        fingerprint=adapter.fingerprint,
        metrics=[
            Metric(name=m.name, value=m.value)
            for m in job.status.metrics
            if m.name in COMPARED_METRICS and math.isfinite(float(m.value))
        ],
    )


def build_addition(job: FinetuneJob, adapter: AdapterStatus) -> Manifest:
    """Build the part of an InferenceService that is the job's adapter. It needs a field manager of its own."""
    return {
        "apiVersion": API_VERSION,
        "kind": INFERENCE_SERVICE_KIND,
        "metadata": {"name": job.service_name, "namespace": job.metadata.namespace},
        "spec": {"adapters": [build_adapter_reference(job, adapter).to_dict()]},
    }


def build_inference_service(job: FinetuneJob, serve: Serve, adapter: AdapterStatus) -> Manifest:
    """Build the InferenceService that the job owns, with its adapter."""
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

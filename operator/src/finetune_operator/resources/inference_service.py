"""The InferenceService that a FinetuneJob owns when it serves its adapter."""

from finetune_api.constants import (
    API_VERSION,
    INFERENCE_SERVICE_KIND,
    LABEL_JOB_NAME,
    LABEL_JOB_UID,
    LABEL_MANAGED_BY,
    MANAGED_BY,
)
from finetune_api.v1alpha1 import AdapterReference, AdapterStatus, FinetuneJob, InferenceServiceSpec, Serve
from finetune_operator.resources import Manifest
from finetune_operator.resources.labels import owner_reference


def build_inference_service(job: FinetuneJob, serve: Serve, adapter: AdapterStatus) -> Manifest:
    """The endpoint for the job's adapter, with the fingerprint that proves it."""
    spec = InferenceServiceSpec(
        model=job.spec.model,
        adapters=[
            AdapterReference(
                name=adapter.name, source=adapter.uri, digest=adapter.digest, fingerprint=adapter.fingerprint
            )
        ],
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
        "spec": spec.to_dict(),
    }

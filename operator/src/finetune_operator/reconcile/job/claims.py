"""The PersistentVolumeClaims that a FinetuneJob's spec names. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass

from finetune_api.contract import DEFAULT_ADAPTERS_CLAIM
from finetune_api.reasons import Reason
from finetune_api.sources import parse_source
from finetune_api.v1alpha1 import FinetuneJob
from finetune_operator.reconcile.job.findings import JobEnd


@dataclass(frozen=True)
class NamedClaim:
    """A claim that a field of the spec names."""

    field: str
    name: str
    missing: Reason
    """Reason of a job whose namespace does not have the claim."""


def named_claims(job: FinetuneJob) -> list[NamedClaim]:
    """List the claims that must exist before a pod starts: it would stay pending without a message."""
    spec = job.spec
    fields = [
        ("spec.model.source", spec.model.source, Reason.MODEL_NOT_FOUND),
        ("spec.dataset.source", spec.dataset.source, Reason.DATASET_NOT_FOUND),
        *(
            (f"spec.dataset.sources[{index}].source", part.source, Reason.DATASET_NOT_FOUND)
            for index, part in enumerate(spec.dataset.sources or ())
        ),
        ("spec.evaluation.source", spec.evaluation.source if spec.evaluation else None, Reason.DATASET_NOT_FOUND),
        ("spec.continueFrom", job.initial_adapter_uri, Reason.ADAPTER_NOT_FOUND),
    ]
    sources = [(field, parse_source(uri), reason) for field, uri, reason in fields if uri]
    claims = [NamedClaim(field, source.name, reason) for field, source, reason in sources if source.scheme == "pvc"]
    return [*claims, NamedClaim("spec.output.claim", spec.output.claim, Reason.SPEC_INVALID)]


def missing_claim(job: FinetuneJob, exists: Mapping[str, bool]) -> JobEnd | None:
    """End a job that names a claim which does not exist. The default output claim is made where it is missing."""
    for claim in named_claims(job):
        is_output = claim.missing == Reason.SPEC_INVALID
        if exists.get(claim.name) is not False or (is_output and claim.name == DEFAULT_ADAPTERS_CLAIM):
            continue
        message = f"{claim.field}: there is no PersistentVolumeClaim {claim.name} in namespace {job.metadata.namespace}"
        remedy = f"; create it, or leave the field out to use {DEFAULT_ADAPTERS_CLAIM}" if is_output else ""
        return JobEnd(claim.missing, f"{message}{remedy}.", is_invalid=True)
    return None

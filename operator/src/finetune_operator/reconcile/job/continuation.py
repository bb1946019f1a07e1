"""A job that continues from the adapter of another one: it waits for that adapter, then keeps to it. Pure.

The adapter goes into status before the first attempt is made, so all attempts start from the very same one, whatever becomes
of the other job meanwhile.
"""

from typing import Final

from finetune_api.reasons import Reason
from finetune_api.v1alpha1 import FinetuneJob, InitialAdapterStatus
from finetune_operator.reconcile.job.findings import Continuing, JobEnd
from finetune_operator.reconcile.job.phase import is_terminal
from finetune_operator.reconcile.job.plan import Observed, Plan

EARLIER_JOB_SECONDS: Final = 5.0
"""Pause between two reads of the other job, whose changes are not marked with this job's name."""


def awaited_job(job: FinetuneJob) -> str | None:
    """Return the name of the job whose adapter is to be continued from, until status says which adapter that is."""
    earlier = job.spec.continue_from
    return earlier.finetune_job if earlier is not None and job.status.initial_adapter is None else None


def continue_from(job: FinetuneJob, name: str, seen: Observed) -> Plan:
    """Pin the adapter of the earlier job, wait for it, or fail if it will never come."""
    earlier = seen.earlier
    shown = f"spec.continueFrom.finetuneJob: FinetuneJob {name} in namespace {job.metadata.namespace}"
    if name == job.metadata.name:
        return Plan(
            end=JobEnd(Reason.SPEC_INVALID, f"{shown} is this job itself; name an earlier one.", is_invalid=True)
        )
    if earlier is None:
        return Plan(
            end=JobEnd(Reason.ADAPTER_NOT_FOUND, f"{shown} does not exist; create it before this one.", is_invalid=True)
        )
    # Whatever became of its endpoint: the adapter is on its claim, and was requested by name.
    if earlier.adapter is not None:
        pinned = InitialAdapterStatus(uri=earlier.adapter.uri, digest=earlier.adapter.digest)
        return Plan(Continuing(pinned))
    if is_terminal(earlier):
        why = f"{earlier.reason}: {earlier.message}"
        message = f"{shown} ended without an adapter ({why}); name another one."
        return Plan(end=JobEnd(Reason.ADAPTER_NOT_FOUND, message, is_invalid=True))
    message = f"{shown} has no adapter yet (it is {earlier.phase or 'Pending'}); training starts once it has."
    return Plan(Continuing(message=message), requeue_after=EARLIER_JOB_SECONDS)

"""A job that continues from the adapter of another one: it waits for that adapter, then keeps to it. Pure.

What was found goes into status before the first attempt is made, so all attempts start from the very same adapter, whatever
becomes of the other job meanwhile.
"""

from typing import Final

from finetune_api.reasons import ConditionType, Reason
from finetune_api.v1alpha1 import FinetuneJob, InitialAdapterStatus
from finetune_operator.reconcile.job.draft import Draft
from finetune_operator.reconcile.job.phase import is_terminal
from finetune_operator.reconcile.plan import Observed, Plan

EARLIER_JOB_SECONDS: Final = 5.0
"""How often to look at the other job, whose changes are not marked with this job's name."""


def awaited_job(job: FinetuneJob) -> str | None:
    """Name of the job whose adapter is to be continued from, until status says which adapter that is."""
    earlier = job.spec.continue_from
    return earlier.finetune_job if earlier is not None and job.status.initial_adapter is None else None


def decide_continuation(draft: Draft, name: str, seen: Observed) -> Plan:
    """Pin the adapter of the earlier job, wait for it, or fail if it will never come."""
    job, earlier = draft.job, seen.earlier
    shown = f"spec.continueFrom.finetuneJob: FinetuneJob {name} in namespace {job.metadata.namespace}"
    if name == job.metadata.name:
        return _fail(draft, Reason.SPEC_INVALID, f"{shown} is this job itself; name an earlier one.")
    if earlier is None:
        return _fail(draft, Reason.ADAPTER_NOT_FOUND, f"{shown} does not exist; create it before this one.")
    # However its endpoint fares: the adapter is on its claim, and was asked for by name.
    if earlier.adapter is not None:
        draft.update(initial_adapter=InitialAdapterStatus(uri=earlier.adapter.uri, digest=earlier.adapter.digest))
        draft.resume()
        draft.condition(ConditionType.VALIDATED, "Unknown", Reason.VALIDATING)
        return draft.plan()
    if is_terminal(earlier):
        why = f"{earlier.reason}: {earlier.message}"
        return _fail(draft, Reason.ADAPTER_NOT_FOUND, f"{shown} ended without an adapter ({why}); name another one.")
    draft.resume()
    message = f"{shown} has no adapter yet (it is {earlier.phase or 'Pending'}); training starts once it has."
    draft.condition(ConditionType.VALIDATED, "Unknown", Reason.WAITING_FOR_ADAPTER, message)
    return draft.plan(requeue_after=EARLIER_JOB_SECONDS)


def _fail(draft: Draft, reason: Reason, message: str) -> Plan:
    draft.condition(ConditionType.VALIDATED, "False", reason, message)
    draft.fail(reason, message)
    return draft.plan()

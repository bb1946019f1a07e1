"""Plans that a cache which is behind could make wrongly: they are decided once more on what the API server says now. Pure.

All other plans are safe on old facts: a status is written only over the version that it was decided on, children have
deterministic names and are deleted by uid, and what a pod has reported never becomes untrue.
"""

from finetune_api.v1alpha1 import FinetuneJob
from finetune_operator.reconcile.job.findings import AttemptFailed, Suspending
from finetune_operator.reconcile.job.phase import is_terminal
from finetune_operator.reconcile.job.plan import Plan


def needs_current_job(plan: Plan) -> bool:
    """Tell whether the job itself must be read again: it may have been cancelled, suspended or deleted meanwhile."""
    return plan.start is not None or plan.delete_self


def needs_current_children(job: FinetuneJob, plan: Plan) -> bool:
    """Tell whether Jobs and pods must be read again, because the plan rests on the absence of a live trainer.

    The first attempt does not: if its Job exists, the name is taken.
    """
    if plan.start is not None:
        return plan.start.number > 1
    if plan.delete_jobs:
        return not is_terminal(job.status)
    if isinstance(plan.finding, AttemptFailed):
        # Nobody reported the end: it was concluded from a pod or a Job that is not there.
        return plan.finding.end.pod is None
    return isinstance(plan.finding, Suspending) and plan.finding.is_stopped

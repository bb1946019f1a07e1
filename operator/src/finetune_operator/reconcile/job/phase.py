"""The phase: one word for people, a pure function of the conditions."""

from finetune_api.conditions import ConditionType, Phase
from finetune_api.reasons import Reason
from finetune_api.v1alpha1 import Condition, FinetuneJobStatus
from finetune_operator.reconcile.conditions import find_condition, is_true


def derive_phase(conditions: list[Condition]) -> tuple[Phase, Condition | None]:
    """Return the phase and the condition that explains it."""
    for kind, phase in ((ConditionType.FAILED, Phase.FAILED), (ConditionType.SUCCEEDED, Phase.SUCCEEDED)):
        if is_true(conditions, kind):
            why = find_condition(conditions, kind)
            cancelled = why is not None and why.reason == Reason.CANCELLED_BY_USER
            return (Phase.CANCELLED if cancelled else phase), why
    if is_true(conditions, ConditionType.ADAPTER_PUBLISHED):
        return _serving_phase(conditions)
    suspended = find_condition(conditions, ConditionType.SUSPENDED)
    if suspended is not None and suspended.status == "True":
        return Phase.SUSPENDED, suspended
    if suspended is not None and suspended.reason == Reason.SUSPENDING:
        return Phase.SUSPENDING, suspended
    return _training_phase(conditions)


def _serving_phase(conditions: list[Condition]) -> tuple[Phase, Condition | None]:
    serving = find_condition(conditions, ConditionType.SERVING_READY)
    if serving is None:
        return Phase.PUBLISHING, find_condition(conditions, ConditionType.ADAPTER_PUBLISHED)
    if serving.status != "True":
        return Phase.DEPLOYING, serving
    return Phase.VERIFYING, find_condition(conditions, ConditionType.ADAPTER_VERIFIED) or serving


def _training_phase(conditions: list[Condition]) -> tuple[Phase, Condition | None]:
    running = find_condition(conditions, ConditionType.RUNNING)
    if running is not None and running.status != "False":
        # Unknown is a lost node: the trainer may still be running there.
        return Phase.RUNNING, running
    if running is not None and running.reason == Reason.RETRYING:
        return Phase.RETRYING, running
    if running is not None and running.reason == Reason.VALIDATING:
        return Phase.VALIDATING, running
    scheduled = find_condition(conditions, ConditionType.SCHEDULED)
    if scheduled is not None and scheduled.status != "True":
        return (Phase.QUEUED if scheduled.reason == Reason.QUOTA_PENDING else Phase.SCHEDULING), scheduled
    if scheduled is not None:
        return Phase.SCHEDULING, running or scheduled
    return Phase.PENDING, find_condition(conditions, ConditionType.VALIDATED)


def is_terminal(status: FinetuneJobStatus) -> bool:
    """Tell whether the job has ended for good."""
    return is_true(status.conditions, ConditionType.SUCCEEDED) or is_true(status.conditions, ConditionType.FAILED)

"""The condition Validated, from the end of a pod's `validate`. Pure."""

from finetune_api.conditions import ConditionType
from finetune_api.reasons import Reason
from finetune_operator.reconcile.job.attempt_outcome import AttemptEnd, parse_outcome
from finetune_operator.reconcile.job.changes import ConditionChange, StatusChanges, When, resumed
from finetune_operator.reconcile.job.findings import Continuing
from finetune_operator.reconcile.job.training_pod import TrainingPod
from finetune_operator.reconcile.pod_reasons import redact


def accepted(pod: TrainingPod) -> ConditionChange:
    """Set Validated to True, with the message of the pod's `validate`."""
    outcome = parse_outcome(pod.validation_end.message) if pod.validation_end is not None else None
    message = redact(outcome.message) if outcome else ""
    return ConditionChange(ConditionType.VALIDATED, "True", Reason.ACCEPTED, message)


def validation_refused(end: AttemptEnd) -> ConditionChange:
    """Set Validated to False, with the problem that `validate` found."""
    return ConditionChange(ConditionType.VALIDATED, "False", end.reason, end.message)


def not_validated_yet() -> ConditionChange:
    """Set Validated to Unknown, unless an earlier attempt was validated."""
    return ConditionChange(ConditionType.VALIDATED, "Unknown", Reason.VALIDATING, when=When.ABSENT)


def describe_continuation(finding: Continuing) -> StatusChanges:
    """Say that the job waits for the adapter that it continues from, or pin that adapter."""
    if finding.adapter is None:
        reason = Reason.WAITING_FOR_ADAPTER
        waiting = ConditionChange(ConditionType.VALIDATED, "Unknown", reason, finding.message)
        return StatusChanges((resumed(), waiting))
    found = ConditionChange(ConditionType.VALIDATED, "Unknown", Reason.VALIDATING)
    return StatusChanges((resumed(), found), {"initial_adapter": finding.adapter})

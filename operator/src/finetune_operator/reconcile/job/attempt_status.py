"""The status of a job whose attempt has not ended: queued, scheduling, pulling, validating, training. Pure."""

from typing import Final

from finetune_api.conditions import ConditionType
from finetune_api.reasons import Reason
from finetune_api.v1alpha1 import Condition, FinetuneJob
from finetune_operator.reconcile.conditions import find_condition
from finetune_operator.reconcile.job.attempts import Attempt
from finetune_operator.reconcile.job.changes import (
    ConditionChange,
    StatusChanges,
    StatusFields,
    When,
    combine,
    ended,
    not_running,
    resumed,
)
from finetune_operator.reconcile.job.findings import Following, JobEnd
from finetune_operator.reconcile.job.progress_report import (
    checkpoint_available,
    checkpoint_statuses,
    is_due,
    progress_status,
    reduction_events,
)
from finetune_operator.reconcile.job.training_pod import TrainingPod
from finetune_operator.reconcile.job.validation import accepted, not_validated_yet
from finetune_operator.reconcile.pod_reasons import CONFIG_REASONS, IMAGE_REASONS, MISSING_REFERENCE

ORDINARY_WAITING: Final = frozenset({"PodInitializing", "ContainerCreating"})
"""Waiting reasons of a container whose turn comes."""
KUEUE_WAITING: Final = "Kueue has not admitted the training Job yet."
SPECIFIC_REASONS: Final = frozenset({Reason.IMAGE_PULL_FAILED, Reason.MODEL_ACCESS_DENIED})
"""Reasons that say more than StartDeadlineExceeded about a pod that does not start."""
HAS_NODE: Final = ConditionChange(ConditionType.SCHEDULED, "True", Reason.SCHEDULED)


def describe_attempt(job: FinetuneJob, finding: Following) -> StatusChanges:
    """Describe the state of the attempt's pod; end the job if the pod did not start in time."""
    attempt = finding.attempt
    followed = StatusChanges((resumed(),), {"attempt": attempt.number})
    pod = attempt.live_pod
    if pod is not None and pod.started_at is not None:
        return combine(followed, _running(job, pod), _progress(job, finding))
    if pod is not None and pod.validation_started_at is not None:
        state = _validating(job, attempt, pod)
    elif attempt.child is not None and attempt.child.is_suspended:
        state = _not_scheduled(Reason.QUOTA_PENDING, KUEUE_WAITING)
    else:
        state = _starting(job, attempt)
    changes = combine(followed, StatusChanges((not_validated_yet(), *state)))
    return combine(changes, _started_too_late(job, state)) if finding.is_late else changes


def _running(job: FinetuneJob, pod: TrainingPod) -> StatusChanges:
    training = ConditionChange(ConditionType.RUNNING, "True", Reason.TRAINING, f"Pod {pod.name} is training.")
    conditions = (accepted(pod), HAS_NODE, _lost(pod) if pod.is_lost else training)
    return StatusChanges(conditions, {"start_time": job.status.start_time or pod.started_at})


def _progress(job: FinetuneJob, finding: Following) -> StatusChanges:
    progress, known = finding.progress, job.status.progress
    if progress is None or not is_due(known, progress, finding.progress_seconds):
        return StatusChanges()
    fields = StatusFields(progress=progress_status(progress))
    conditions: tuple[ConditionChange, ...] = ()
    if progress.checkpoint_step is not None:
        fields["checkpoints"] = checkpoint_statuses(job, progress.checkpoint_step)
        conditions = (checkpoint_available(When.NOT_TRUE),)
    return StatusChanges(conditions, fields, reduction_events(known, progress.passes))


def _lost(pod: TrainingPod) -> ConditionChange:
    message = f"The node of pod {pod.name} stopped reporting. No other pod is started while this one may be running."
    return ConditionChange(ConditionType.RUNNING, "Unknown", Reason.NODE_LOST, message)


def _validating(job: FinetuneJob, attempt: Attempt, pod: TrainingPod) -> tuple[ConditionChange, ...]:
    """Describe a pod whose `validate` runs, or has ended: the moment until the trainer starts is not worth a write."""
    if pod.is_lost:
        return HAS_NODE, _lost(pod)
    if pod.validation_end is not None and pod.waiting is not None and pod.waiting[0] not in ORDINARY_WAITING:
        return HAS_NODE, accepted(pod), _not_started(job, attempt, pod)
    message = f"Pod {pod.name} checks the spec, the model and the dataset."
    return HAS_NODE, ConditionChange(ConditionType.RUNNING, "False", Reason.VALIDATING, message)


def _starting(job: FinetuneJob, attempt: Attempt) -> tuple[ConditionChange, ...]:
    """Describe a pod that has not started, with the scheduler's or the kubelet's own message."""
    pod = attempt.pod
    if pod is None:
        return _not_scheduled(Reason.WAITING_FOR_POD, "The training Job has no pod yet.")
    if pod.is_scheduled:
        return HAS_NODE, _not_started(job, attempt, pod)
    if pod.unschedulable is None:
        return _not_scheduled(Reason.WAITING_FOR_POD, f"Pod {pod.name} has no node yet.")
    reason, message = pod.unschedulable
    if reason == "SchedulingGated":
        return _not_scheduled(Reason.QUOTA_PENDING, message or KUEUE_WAITING)
    return _not_scheduled(Reason.UNSCHEDULABLE, message)


def _not_scheduled(reason: Reason, message: str) -> tuple[ConditionChange, ...]:
    return ConditionChange(ConditionType.SCHEDULED, "False", reason, message), not_running(reason)


def _not_started(job: FinetuneJob, attempt: Attempt, pod: TrainingPod) -> ConditionChange:
    """Explain why a container of a pod that has a node does not run."""
    waiting, words = pod.waiting or ("", "")
    reason, message = Reason.WAITING_FOR_POD, f"Pod {pod.name} is starting."
    if waiting in IMAGE_REASONS:
        reason, message = Reason.IMAGE_PULL_FAILED, f"Pod {pod.name} cannot pull its image: {waiting}: {words}"
        if (known := _known_image_problem(job, attempt)) is not None:
            # The kubelet alternates between two messages; following it would write status for ever.
            message = known.message
    elif waiting in CONFIG_REASONS:
        is_secret = waiting == MISSING_REFERENCE and job.spec.model.secret_ref is not None
        reason = Reason.MODEL_ACCESS_DENIED if is_secret else Reason.WAITING_FOR_POD
        message = f"Pod {pod.name} cannot start its container: {waiting}: {words}"
    return ConditionChange(ConditionType.RUNNING, "False", reason, message)


def _known_image_problem(job: FinetuneJob, attempt: Attempt) -> Condition | None:
    """Return the condition that already reports the image of this attempt; every end of an attempt replaces it."""
    known = find_condition(job.status.conditions, ConditionType.RUNNING)
    is_known = known is not None and known.reason == Reason.IMAGE_PULL_FAILED and job.status.attempt == attempt.number
    return known if is_known else None


def _started_too_late(job: FinetuneJob, state: tuple[ConditionChange, ...]) -> StatusChanges:
    """End the job with the obstacle that kept its pod from starting: the first condition that is not True."""
    obstacle = next(change for change in state if change.status != "True")
    reason = obstacle.reason if obstacle.reason in SPECIFIC_REASONS else Reason.START_DEADLINE_EXCEEDED
    seconds = job.spec.policy.start_deadline_seconds
    message = f"The pod did not start within {seconds} s. {obstacle.reason}: {obstacle.message}"
    return ended(JobEnd(reason, message))

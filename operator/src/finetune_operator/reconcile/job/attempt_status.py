"""Reporting on an attempt that has not ended: queued, scheduling, pulling, running. Pure."""

from datetime import datetime, timedelta
from typing import Final

from finetune_api.outcome import MicroBatching
from finetune_api.reasons import ConditionType, Reason
from finetune_operator.reconcile.conditions import find_condition, is_true
from finetune_operator.reconcile.job.attempt_outcome import parse_outcome
from finetune_operator.reconcile.job.attempts import Attempt, checkpoint_statuses
from finetune_operator.reconcile.job.draft import Draft
from finetune_operator.reconcile.job.progress_report import is_due, new_reductions, progress_status
from finetune_operator.reconcile.plan import Observed, Plan
from finetune_operator.reconcile.pod_reasons import CONFIG_REASONS, IMAGE_REASONS, redact
from finetune_operator.reconcile.views import PodView
from finetune_operator.settings import Settings

ORDINARY_WAITING: Final = frozenset({"PodInitializing", "ContainerCreating"})
"""Waiting reasons of a container whose turn comes."""
KUEUE_WAITING: Final = "Kueue has not admitted the training Job yet."


def report_attempt(draft: Draft, attempt: Attempt, seen: Observed, settings: Settings) -> Plan:
    """Say what the attempt's pod is doing; give up on a pod that does not start in time."""
    draft.update(attempt=attempt.number)
    draft.resume()
    pod = attempt.pod
    if pod is not None and not pod.is_finished and pod.started_at is not None:
        return _report_running(draft, pod, seen, settings)
    if find_condition(draft.status.conditions, ConditionType.VALIDATED) is None:
        draft.condition(ConditionType.VALIDATED, "Unknown", Reason.VALIDATING)
    if pod is not None and not pod.is_finished and pod.validation_started_at is not None:
        return _report_validating(draft, attempt, pod)
    if attempt.child is not None and attempt.child.is_suspended:
        draft.condition(ConditionType.SCHEDULED, "False", Reason.QUOTA_PENDING, KUEUE_WAITING)
        draft.stop_running(Reason.QUOTA_PENDING)
        return draft.plan()
    _report_waiting(draft, pod)
    return _plan_with_start_deadline(draft, attempt)


def _report_running(draft: Draft, pod: PodView, seen: Observed, settings: Settings) -> Plan:
    draft.update(start_time=draft.status.start_time or pod.started_at)
    mark_validated(draft, pod)
    draft.condition(ConditionType.SCHEDULED, "True", Reason.SCHEDULED)
    if _is_lost(pod):
        _report_lost(draft, pod)
    else:
        draft.condition(ConditionType.RUNNING, "True", Reason.TRAINING, f"Pod {pod.name} is training.")
    _report_progress(draft, seen, settings)
    return draft.plan(requeue_after=settings.progress_seconds if settings.broker_url is not None else None)


def _is_lost(pod: PodView) -> bool:
    return pod.reason == "NodeLost" or (pod.disruption is not None and pod.disruption[0] == "DeletionByTaintManager")


def _report_lost(draft: Draft, pod: PodView) -> None:
    message = f"The node of pod {pod.name} stopped reporting. No other pod is started while this one may be running."
    draft.condition(ConditionType.RUNNING, "Unknown", Reason.NODE_LOST, message)


def _report_validating(draft: Draft, attempt: Attempt, pod: PodView) -> Plan:
    """The first container runs, or has ended and the trainer is about to start: a moment that is not worth a write."""
    draft.condition(ConditionType.SCHEDULED, "True", Reason.SCHEDULED)
    if _is_lost(pod):
        _report_lost(draft, pod)
    elif pod.validation_end is not None and pod.waiting is not None and pod.waiting[0] not in ORDINARY_WAITING:
        mark_validated(draft, pod)
        draft.condition(ConditionType.RUNNING, "False", *_starting_reason(draft, pod))
    else:
        message = f"Pod {pod.name} checks the spec, the model and the dataset."
        draft.condition(ConditionType.RUNNING, "False", Reason.VALIDATING, message)
    return draft.plan() if pod.validation_end is None else _plan_with_start_deadline(draft, attempt)


def mark_validated(draft: Draft, pod: PodView) -> None:
    """Validated becomes True, with what the pod's `validate` had to say."""
    outcome = parse_outcome(pod.validation_end.message) if pod.validation_end is not None else None
    draft.condition(ConditionType.VALIDATED, "True", Reason.ACCEPTED, redact(outcome.message) if outcome else "")


def _report_progress(draft: Draft, seen: Observed, settings: Settings) -> None:
    progress = seen.progress
    if progress is None or not is_due(draft.status.progress, progress, settings.progress_seconds):
        return
    report_reductions(draft, progress.passes)
    draft.update(progress=progress_status(progress))
    if progress.checkpoint_step is None:
        return
    draft.update(checkpoints=checkpoint_statuses(draft.job, progress.checkpoint_step))
    if not is_true(draft.status.conditions, ConditionType.CHECKPOINT_AVAILABLE):
        draft.condition(ConditionType.CHECKPOINT_AVAILABLE, "True", Reason.TRAINING, "An attempt can be resumed.")


def report_reductions(draft: Draft, passes: MicroBatching | None) -> None:
    """Tell people that memory ran out and was made do with, if status does not say so yet."""
    if message := new_reductions(draft.status.progress, passes):
        draft.event("OutOfMemory", message, is_warning=True)


def _report_waiting(draft: Draft, pod: PodView | None) -> None:
    """Scheduled and Running for a pod that has not started, with the scheduler's or the kubelet's own words."""
    if pod is None:
        draft.condition(ConditionType.SCHEDULED, "False", Reason.WAITING_FOR_POD, "The training Job has no pod yet.")
        draft.stop_running(Reason.WAITING_FOR_POD)
        return
    if not pod.is_scheduled:
        reason, message = _scheduling_reason(pod)
        draft.condition(ConditionType.SCHEDULED, "False", reason, message)
        draft.stop_running(reason)
        return
    draft.condition(ConditionType.SCHEDULED, "True", Reason.SCHEDULED)
    reason, message = _starting_reason(draft, pod)
    draft.condition(ConditionType.RUNNING, "False", reason, message)


def _scheduling_reason(pod: PodView) -> tuple[Reason, str]:
    if pod.unschedulable is None:
        return Reason.WAITING_FOR_POD, f"Pod {pod.name} has no node yet."
    reason, message = pod.unschedulable
    if reason == "SchedulingGated":
        return Reason.QUOTA_PENDING, message or KUEUE_WAITING
    return Reason.UNSCHEDULABLE, message


def _starting_reason(draft: Draft, pod: PodView) -> tuple[Reason, str]:
    reason, message = pod.waiting or ("", "")
    if reason in IMAGE_REASONS:
        known = find_condition(draft.status.conditions, ConditionType.RUNNING)
        if known is not None and known.reason == Reason.IMAGE_PULL_FAILED and pod.name in known.message:
            # The kubelet alternates between two messages; following it would write status for ever.
            return Reason.IMAGE_PULL_FAILED, known.message
        return Reason.IMAGE_PULL_FAILED, f"Pod {pod.name}: {reason}: {message}"
    if reason in CONFIG_REASONS:
        is_secret = "secret" in message.lower()
        return (Reason.MODEL_ACCESS_DENIED if is_secret else Reason.WAITING_FOR_POD), f"{reason}: {message}"
    return Reason.WAITING_FOR_POD, f"Pod {pod.name} is starting."


def _plan_with_start_deadline(draft: Draft, attempt: Attempt) -> Plan:
    seconds = draft.job.spec.policy.start_deadline_seconds
    begin = _waiting_since(attempt)
    if begin is None:
        return draft.plan()
    remaining = (begin + timedelta(seconds=seconds) - draft.now).total_seconds()
    if remaining > 0:
        return draft.plan(requeue_after=remaining)
    why = find_condition(draft.status.conditions, ConditionType.SCHEDULED)
    if why is None or why.status == "True":
        why = find_condition(draft.status.conditions, ConditionType.RUNNING)
    detail = f" {why.reason}: {why.message}" if why is not None else ""
    specific = why is not None and why.reason in (Reason.IMAGE_PULL_FAILED, Reason.MODEL_ACCESS_DENIED)
    reason = Reason(why.reason) if why is not None and specific else Reason.START_DEADLINE_EXCEEDED
    draft.fail(reason, f"The pod did not start within {seconds} s.{detail}")
    return draft.plan()


def _waiting_since(attempt: Attempt) -> datetime | None:
    pod = attempt.pod
    if pod is not None and pod.validation_end is not None and pod.validation_end.finished_at is not None:
        return pod.validation_end.finished_at
    if pod is not None and pod.created is not None:
        return pod.created
    if attempt.child is None:
        return None
    return attempt.child.started or attempt.child.created

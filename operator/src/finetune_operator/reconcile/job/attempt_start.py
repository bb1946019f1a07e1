"""The next attempt: it starts once nothing of the one before is alive. Pure."""

from datetime import datetime
from typing import Final

from finetune_api.v1alpha1 import FinetuneJob
from finetune_operator.reconcile.job.attempts import Attempt, retry_due
from finetune_operator.reconcile.job.claims import missing_claim
from finetune_operator.reconcile.job.continuation import awaited_job, continue_from
from finetune_operator.reconcile.job.plan import AttemptStart, Observed, Plan
from finetune_operator.resources import Manifest
from finetune_operator.resources.claim import build_adapters_claim
from finetune_operator.resources.training_job import build_training_job
from finetune_operator.settings import Settings

LIVE_TRAINER_SECONDS: Final = 10.0
"""Pause between two reads of a pod that is being stopped, should its events be lost."""


def start_attempt(job: FinetuneJob, attempt: Attempt, seen: Observed, now: datetime, settings: Settings) -> Plan:
    """Start the next attempt. Reports nothing, because the next reconcile does."""
    if seen.has_live_trainer:
        return Plan(requeue_after=LIVE_TRAINER_SECONDS)
    due = retry_due(job.status, settings.retry_seconds)
    if due is not None and due > now:
        return Plan(requeue_after=(due - now).total_seconds())
    if (earlier := awaited_job(job)) is not None:
        return continue_from(job, earlier, seen)
    if (end := missing_claim(job, seen.claims)) is not None:
        return Plan(end=end)
    with_claim = seen.claims.get(job.spec.output.claim) is False
    return Plan(start=AttemptStart(attempt.number + 1, with_claim))


def build_attempt(job: FinetuneJob, start: AttemptStart, settings: Settings) -> tuple[Manifest, ...]:
    """Build the children of an attempt. Raises StalledError if the spec allows none."""
    training_job = build_training_job(job, start.number, settings)
    if start.with_claim:
        return build_adapters_claim(job.metadata.namespace, settings), training_job
    return (training_job,)

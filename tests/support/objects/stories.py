"""The life of one object as text: what the operator writes, announces and does at each step, for people to review.

Each step is decided on the status that the step before it wrote, so a story also shows what the next reconcile relies on.
"""

import json
import os
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import yaml

from finetune_api.v1alpha1 import FinetuneJob, FinetuneJobStatus, InferenceService, InferenceServiceStatus
from finetune_operator.reconcile.events import EventDraft
from finetune_operator.reconcile.job.plan import ActionOutcome, Observed
from finetune_operator.reconcile.reporting import merge_patch
from finetune_operator.reconcile.service.adapter_verdicts import Answers
from finetune_operator.reconcile.service.plan import ServiceObserved, Stalled
from finetune_operator.resources import Manifest
from finetune_operator.settings import Settings
from support.objects.decisions import DONE, JobDecision, ServiceDecision, decide_for, decide_job
from support.objects.operator_objects import NOW, SETTINGS, a_job, a_service

CLAIMS = {"models": True, "finetune-adapters": True}
BEGIN = NOW.replace(microsecond=250_000)
"""Begin of every story: clocks have fractions of seconds, and times in status have none."""


@dataclass
class Story:
    """Steps as they are stored on file."""

    steps: list[dict[str, Any]] = field(default_factory=list)

    def tell(self, title: str, status: dict[str, Any], done: dict[str, Any]) -> None:
        """Add a step; what is empty is left out, so that a step without anything but its title wrote nothing."""
        told = {"step": title, "write": status, **done}
        self.steps.append(
            {key: value for key, value in told.items() if value is not False and value not in ({}, [], None)}
        )


@dataclass
class JobStory(Story):
    """The life of a FinetuneJob."""

    job: FinetuneJob = field(default_factory=a_job)
    now: datetime = BEGIN

    def edit(self, **spec: Any) -> None:
        """Change the spec: the object gets another generation."""
        job = a_job(self.job.status, **spec)
        metadata = job.metadata.model_copy(update={"generation": self.job.metadata.generation + 1})
        self.job = job.model_copy(update={"metadata": metadata})

    def step(
        self,
        title: str,
        seconds: float = 1,
        outcome: ActionOutcome = DONE,
        settings: Settings = SETTINGS,
        **seen: Any,
    ) -> JobDecision:
        """Decide `seconds` after the step before, and read the status back as it was written."""
        self.now += timedelta(seconds=seconds)
        decision = decide_job(self.job, Observed(**{"claims": CLAIMS, **seen}), self.now, settings, outcome)
        done = {
            "events": [_event(event) for event in decision.events],
            "create": [_name(child) for child in decision.create],
            "apply": [_name(child) for child in decision.apply],
            "add": list(decision.add),
            "delete": [child.name for child in decision.delete_jobs],
            "delete_endpoint": decision.delete_service.metadata.name if decision.delete_service else None,
            "delete_self": decision.delete_self,
            "requeue_after": decision.requeue_after,
        }
        self.tell(title, _written(self.job.status.to_dict(), decision.status.to_dict()), done)
        status = FinetuneJobStatus.model_validate(decision.status.to_dict())
        assert status == decision.status, "what is read back is what was decided"
        self.job = self.job.model_copy(update={"status": status})
        return decision


@dataclass
class ServiceStory(Story):
    """The life of an InferenceService."""

    service: InferenceService = field(default_factory=a_service)
    now: datetime = BEGIN

    def edit(self, **spec: Any) -> None:
        """Change the spec: the object gets another generation."""
        service, old = a_service(**spec), self.service
        metadata = service.metadata.model_copy(update={"generation": old.metadata.generation + 1})
        self.service = service.model_copy(update={"metadata": metadata, "status": old.status})

    def step(
        self,
        title: str,
        seen: ServiceObserved,
        answers: Answers | None = None,
        refusal: Stalled | None = None,
        settings: Settings = SETTINGS,
    ) -> ServiceDecision:
        """Decide one second after the step before, and read the status back as it was written."""
        self.now += timedelta(seconds=1)
        decision = decide_for(self.service, seen, answers, self.now, settings, refusal)
        done = {
            "events": [_event(event) for event in decision.events],
            "apply": [_name(child) for child in decision.apply],
            "is_rollout": decision.is_rollout,
            "delete": [_name(child) for child in decision.delete],
            "refresh": [pod.name for pod in decision.refresh],
            "promote": [request.candidate for request in decision.promote],
            "gates": [f"{gate.pod.name} {'open' if gate.is_open else 'closed'}" for gate in decision.gates],
            "probes": [f"{probe.pod.name} {probe.name} {probe.digest}" for probe in decision.probes],
            "is_switch": decision.is_switch,
            "requeue_after": decision.requeue_after,
        }
        self.tell(title, _written(self.service.status.to_dict(), decision.status.to_dict()), done)
        status = InferenceServiceStatus.model_validate(decision.status.to_dict())
        assert status == decision.status, "what is read back is what was decided"
        self.service = self.service.model_copy(update={"status": status})
        return decision


def compare_stories(path: Path, stories: list[Story]) -> None:
    """Compare stories with those on file, or write them anew if UPDATE_GOLDEN is set."""
    documents = [story.steps for story in stories]
    text = yaml.safe_dump_all(documents, sort_keys=False, width=120, allow_unicode=True)
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text)
    assert path.read_text() == text, "run `UPDATE_GOLDEN=1 python -m pytest tests/golden` and review the diff"


def _written(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """The patch that is sent; of the conditions, which are sent whole, those that change, each in one line."""
    patch = merge_patch(old, new)
    if "conditions" in patch:
        before, after = old.get("conditions", []), patch["conditions"] or []
        removed = sorted({c["type"] for c in before} - {c["type"] for c in after})
        patch["conditions"] = [_condition(c) for c in after if c not in before] + [f"no {kind}" for kind in removed]
    sorted_patch: dict[str, Any] = json.loads(json.dumps(patch, sort_keys=True))
    return sorted_patch


def _condition(condition: dict[str, Any]) -> str:
    words = "{type}={status} {reason} since {lastTransitionTime}, generation {observedGeneration}".format_map(condition)
    return f"{words}: {condition.get('message', '')}".rstrip(": ")


def _event(event: EventDraft) -> str:
    return f"{'Warning' if event.is_warning else 'Normal'} {event.reason}: {event.message}"


def _name(child: Manifest) -> str:
    return f"{child['kind']} {child['metadata']['name']}"

"""What is written at the end of a reconcile: one status, then its Events; and what a malformed object gets instead."""

import asyncio
import logging
from typing import Any

import pytest
from pydantic import ValidationError

from finetune_api.v1alpha1 import FinetuneJob, FinetuneJobStatus
from finetune_operator.errors import ClusterError
from finetune_operator.io.cluster import FINETUNE_JOBS, INFERENCE_SERVICES, Resource
from finetune_operator.reconcile import malformed
from finetune_operator.reconcile.context import Context
from finetune_operator.reconcile.events import EventDraft
from finetune_operator.reconcile.malformed import build_malformed_status, report_malformed
from finetune_operator.reconcile.reporting import build_event, write_status
from support.objects.operator_objects import NOW, SETTINGS

RAW = {"metadata": {"name": "tone", "namespace": "ml", "uid": "u", "generation": 3, "resourceVersion": "7"}}
WARNING = EventDraft("Retrying", "again", is_warning=True)


class Recorder:
    """A cluster that notes what is written; `is_gone` objects take no status."""

    def __init__(self, *, is_gone: bool = False, refuses_events: bool = False, refuses_status: bool = False) -> None:
        self.is_gone = is_gone
        self.refuses_events = refuses_events
        self.refuses_status = refuses_status
        self.written: list[Any] = []

    async def patch_status(self, resource: Resource, metadata: Any, status: Any) -> bool:
        if self.refuses_status:
            raise ClusterError("patch status of", "it", 422, "no")
        self.written.append((resource.plural, metadata["name"], status))
        return not self.is_gone

    async def create_event(self, namespace: str, event: Any) -> None:
        self.written.append((namespace, event["reason"], event["type"]))
        if self.refuses_events:
            raise ClusterError("create", "events", 403, "no")


def context_of(cluster: Recorder) -> Context:
    return Context(cluster=cluster, progress=None, settings=SETTINGS)  # type: ignore[arg-type]


def write(cluster: Recorder, new: FinetuneJobStatus) -> list[Any]:
    old = FinetuneJobStatus(attempt=1)
    events = [WARNING, EventDraft("Succeeded", "done")]
    asyncio.run(write_status(context_of(cluster), FINETUNE_JOBS, RAW, "FinetuneJob", old, new, events))
    return cluster.written


def test_events_follow_a_status_that_changed_and_was_written() -> None:
    changed = FinetuneJobStatus(attempt=2)
    patch = ("finetunejobs", "tone", {"attempt": 2})
    events = [("ml", "Retrying", "Warning"), ("ml", "Succeeded", "Normal")]
    assert write(Recorder(), changed) == [patch, *events]
    assert write(Recorder(), FinetuneJobStatus(attempt=1)) == []
    assert write(Recorder(is_gone=True), changed) == [patch], "nothing happened to an object that is gone"
    assert write(Recorder(refuses_events=True), changed) == [patch, *events], "an event is a courtesy"


def test_an_event_names_its_object_and_its_controller() -> None:
    event = build_event(RAW, "FinetuneJob", WARNING, NOW)
    assert event["regarding"] == {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FinetuneJob",
        "name": "tone",
        "namespace": "ml",
        "uid": "u",
    }
    assert (event["apiVersion"], event["kind"], event["type"], event["note"]) == (
        "events.k8s.io/v1",
        "Event",
        "Warning",
        "again",
    )
    assert (event["action"], event["reason"]) == ("Retrying", "Retrying")
    assert (event["reportingController"], event["reportingInstance"]) == (
        "finetune.dev/finetune-operator",
        "finetune-operator",
    )
    assert event["metadata"]["namespace"] == "ml"
    assert event["metadata"]["name"].startswith("tone.")
    assert len(event["metadata"]["name"]) == len("tone.") + 16


def a_problem(**spec: Any) -> ValidationError:
    with pytest.raises(ValidationError) as caught:
        FinetuneJob.model_validate({**RAW, "spec": spec})
    return caught.value


def test_a_malformed_object_gets_one_condition_and_one_log_line_per_version(caplog: pytest.LogCaptureFixture) -> None:
    cluster = Recorder()
    context = context_of(cluster)
    later = {"metadata": {**RAW["metadata"], "generation": 4}}
    with caplog.at_level(logging.ERROR):
        for raw in (RAW, RAW, later):
            asyncio.run(report_malformed(context, FINETUNE_JOBS, raw, a_problem()))
    (status, event), again = cluster.written[:2], cluster.written[2:]
    assert len(again) == len(caplog.records) == 2
    assert event == ("ml", "SpecInvalid", "Warning")
    status = status[2]
    (condition,) = status["conditions"]
    assert (condition["type"], condition["status"], condition["reason"]) == ("Validated", "False", "SpecInvalid")
    assert (condition["observedGeneration"], status["phase"], status["reason"]) == (3, "Pending", "SpecInvalid")
    assert status["message"] == condition["message"]


def test_a_malformed_object_whose_status_takes_no_condition_is_logged() -> None:
    asyncio.run(report_malformed(context_of(Recorder(refuses_status=True)), FINETUNE_JOBS, RAW, a_problem()))


def test_the_memory_of_malformed_objects_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(malformed, "MAX_REMEMBERED", 2)
    context = context_of(Recorder())
    for generation in range(5):
        raw = {"metadata": {**RAW["metadata"], "generation": generation}}
        asyncio.run(report_malformed(context, FINETUNE_JOBS, raw, a_problem()))
        assert 1 <= len(context.reported) <= 2
        assert any(report.startswith(f"u/{generation}/") for report in context.reported)


def test_a_status_that_has_conditions_is_left_as_it_is_and_a_service_gets_ready() -> None:
    assert build_malformed_status(FINETUNE_JOBS, {**RAW, "status": {"conditions": [{}]}}, "x", NOW) is None
    status = build_malformed_status(INFERENCE_SERVICES, {**RAW, "status": {"conditions": []}}, "x", NOW)
    assert status is not None
    assert status["conditions"][0]["type"] == "Ready"
    assert status["conditions"][0]["lastTransitionTime"] == "2026-01-02T03:04:05Z"
    assert set(status) == {"conditions", "phase"}
    assert build_malformed_status(FINETUNE_JOBS, {**RAW, "status": "text"}, "x", NOW) is not None

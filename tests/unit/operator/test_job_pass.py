"""What one pass over a FinetuneJob reads and writes, and what a child that cannot be made becomes."""

import asyncio
import logging
from typing import Any

import pytest

from finetune_api.outcome import Progress
from finetune_api.v1alpha1 import FinetuneJob
from finetune_operator.errors import ClusterError
from finetune_operator.reconcile.context import Context, ReconcileResult
from finetune_operator.reconcile.job.reconcile import reconcile_finetune_job
from support.cluster.stored_objects import StoredObjects
from support.objects.factories import a_claim, a_finetune_job
from support.objects.operator_objects import SETTINGS, UID, a_progress

CHILD = "tone-0a1b2c3d-a1"
LABELS = {"finetune.dev/job-uid": UID, "finetune.dev/attempt": "1"}
OWNER = {"apiVersion": "finetune.dev/v1alpha1", "kind": "FinetuneJob", "name": "tone", "uid": UID, "controller": True}
JOB = {"kind": "Job", "metadata": {"name": CHILD, "uid": "job-1", "labels": LABELS, "ownerReferences": [OWNER]}}
POD = {"kind": "Pod", "metadata": {"name": f"{CHILD}-x", "labels": LABELS}}
RUNNING = {"containerStatuses": [{"name": "trainer", "state": {"running": {"startedAt": "2026-01-02T03:04:05Z"}}}]}
FAILED = {"type": "Failed", "status": "True", "reason": "LossDiverged", "lastTransitionTime": "2026-01-02T03:04:05Z"}
SUCCEEDED = {**FAILED, "type": "Succeeded", "reason": "Completed"}
ADAPTER = {
    "name": "tone",
    "uri": f"pvc://finetune-adapters/tone/{UID}",
    "digest": f"sha256:{'a' * 64}",
    "baseModel": "pvc://models/tiny",
}


class Figures:
    """Progress of each attempt that was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []

    async def read(self, job_uid: str, attempt: int) -> Progress | None:
        self.asked.append((job_uid, attempt))
        return a_progress(5)


def a_raw_job(status: Any = None, **spec: Any) -> dict[str, Any]:
    raw = a_finetune_job(**spec)
    times = {"uid": UID, "generation": 1, "resourceVersion": "7", "creationTimestamp": "2026-01-02T03:00:00Z"}
    return {**raw, "metadata": {**raw["metadata"], **times}, "status": status or {}}


def stored(job: dict[str, Any], *objects: dict[str, Any]) -> StoredObjects:
    """A namespace with the job, the claim of its model, and these objects."""
    found = StoredObjects(*(o for o in objects if o["kind"] not in ("Pod", "FinetuneJob")), a_claim("models", "ml"))
    found.put(job, "finetunejobs")
    for raw in objects:
        if raw["kind"] in ("Pod", "FinetuneJob"):
            found.put(raw, {"Pod": "pods", "FinetuneJob": "finetunejobs"}[raw["kind"]])
    return found


def reconcile(objects: StoredObjects, figures: Figures | None = None) -> ReconcileResult:
    context = Context(cluster=objects, progress=figures or Figures(), settings=SETTINGS)  # type: ignore[arg-type]
    return asyncio.run(reconcile_finetune_job(context, "ml", "tone"))


def status_of(objects: StoredObjects) -> dict[str, Any]:
    status: dict[str, Any] = objects.objects["finetunejobs", "tone"]["status"]
    FinetuneJob.model_validate(objects.objects["finetunejobs", "tone"])
    return status


def outcome_of(objects: StoredObjects) -> tuple[str, str, str]:
    """Phase, reason and message."""
    status = status_of(objects)
    return status["phase"], status["reason"], status["message"]


def test_a_job_that_is_gone_needs_nothing() -> None:
    objects = StoredObjects()
    assert (reconcile(objects), objects.writes) == (ReconcileResult(), [])


def test_a_new_job_gets_its_claim_and_its_first_child_and_then_a_status() -> None:
    objects = stored(a_raw_job())
    assert reconcile(objects).acted
    assert objects.writes == [("create", "persistentvolumeclaims", "finetune-adapters"), ("create", "jobs", CHILD)]
    assert status_of(objects) == {}
    assert not reconcile(objects).acted
    assert objects.writes[2:] == [("patch_status", "finetunejobs", "tone")]
    assert outcome_of(objects) == ("Scheduling", "WaitingForPod", "The training Job has no pod yet.")


def test_children_that_a_pass_made_before_it_died_are_its_own() -> None:
    unlabelled = {**JOB, "metadata": {**JOB["metadata"], "labels": {}}}
    objects = stored(a_raw_job(), unlabelled, a_claim("finetune-adapters", "ml"))
    assert reconcile(objects).acted
    assert (objects.writes, status_of(objects)) == ([], {})


@pytest.mark.parametrize("owners", [[], [{**OWNER, "uid": "another"}], [{**OWNER, "uid": "x", "kind": "CronJob"}]])
def test_a_child_of_somebody_else_ends_the_job_and_stays(owners: list[Any]) -> None:
    theirs = {"kind": "Job", "metadata": {"name": CHILD, "uid": "x", "labels": {}, "ownerReferences": owners}}
    objects = stored(a_raw_job(), theirs, a_claim("finetune-adapters", "ml"))
    assert not reconcile(objects).acted
    message = (
        f"Job {CHILD} exists in namespace ml and belongs to somebody else. "
        "Delete or rename it, then create the job again."
    )
    assert outcome_of(objects) == ("Failed", "ChildConflict", message)
    assert [(event["type"], event["reason"], event["note"]) for event in objects.events] == [
        ("Warning", "ChildConflict", message)
    ]
    assert objects.objects["jobs", CHILD] == theirs


@pytest.mark.parametrize(
    ("status", "phase", "reason"), [(403, "Queued", "QuotaPending"), (422, "Failed", "SpecInvalid"), (500, None, None)]
)
def test_a_child_that_the_api_server_refuses_says_so_and_an_outage_is_not_a_refusal(
    status: int, phase: str | None, reason: str | None
) -> None:
    objects = stored(a_raw_job(), a_claim("finetune-adapters", "ml"))
    objects.refusals["Job"] = status
    if phase is None:
        with pytest.raises(ClusterError):
            reconcile(objects)
        assert objects.writes == []
        return
    assert not reconcile(objects).acted
    assert outcome_of(objects) == (phase, reason, f"cannot create jobs {CHILD}: {status}: a policy forbids it")


def test_a_spec_that_allows_no_child_says_what_to_change() -> None:
    rows = {"inline": '{"prompt": "a", "completion": "b"}\n' * 3000}
    objects = stored(a_raw_job(dataset=rows, evaluation=rows), a_claim("finetune-adapters", "ml"))
    assert not reconcile(objects).acted
    phase, reason, message = outcome_of(objects)
    assert (phase, reason) == ("Failed", "SpecInvalid")
    assert "set dataset.source to its URI" in message
    assert [(c["type"], c["status"]) for c in status_of(objects)["conditions"]] == [
        ("Validated", "False"),
        ("Failed", "True"),
    ]


def test_the_progress_of_a_running_attempt_is_read_and_no_other() -> None:
    figures = Figures()
    objects = stored(a_raw_job(), JOB, {**POD, "status": {"phase": "Running", **RUNNING}})
    reconcile(objects, figures)
    assert (figures.asked, status_of(objects)["progress"]["step"]) == ([(UID, 1)], 5)
    for status, pod in (
        ({}, {"phase": "Pending"}),
        ({}, {"phase": "Failed", **RUNNING}),
        ({"conditions": [FAILED]}, {"phase": "Running", **RUNNING}),
        ({"adapter": ADAPTER}, {"phase": "Running", **RUNNING}),
    ):
        other = Figures()
        reconcile(stored(a_raw_job(status), JOB, {**POD, "status": pod}), other)
        assert other.asked == []


def test_claims_are_read_where_an_attempt_may_start_and_nowhere_else() -> None:
    dataset = {"source": "pvc://rows/a.jsonl"}
    objects = stored(a_raw_job(dataset=dataset))
    reconcile(objects)
    claims = [name for plural, name in objects.reads if plural == "persistentvolumeclaims"]
    assert claims == ["finetune-adapters", "models", "rows"]
    assert outcome_of(objects)[:2] == ("Failed", "DatasetNotFound")
    ended = {"conditions": [FAILED]}
    for job in (a_raw_job(ended), a_raw_job({"adapter": ADAPTER}), a_raw_job(suspend=True)):
        objects = stored(job)
        reconcile(objects)
        assert not [name for plural, name in objects.reads if plural == "persistentvolumeclaims"]
    objects = stored(a_raw_job(), JOB)
    reconcile(objects)
    assert not [name for plural, name in objects.reads if plural == "persistentvolumeclaims"]


def test_a_suspended_job_stops_its_child_by_uid() -> None:
    objects = stored(a_raw_job({"attempt": 1}, suspend=True), JOB, {**POD, "status": {"phase": "Running", **RUNNING}})
    reconcile(objects)
    assert ("delete", "jobs", CHILD, "job-1") in objects.writes
    assert outcome_of(objects)[:2] == ("Suspending", "Suspending")


def test_a_job_that_has_outlived_its_time_deletes_itself_by_uid() -> None:
    completed = {"conditions": [SUCCEEDED], "completionTime": "2026-01-02T03:04:05Z", "observedGeneration": 1}
    objects = stored(a_raw_job(completed, ttlSecondsAfterFinished=60))
    reconcile(objects)
    assert objects.writes[-1] == ("delete", "finetunejobs", "tone", UID)
    kept = stored(a_raw_job({**completed, "completionTime": "2999-01-02T03:04:05Z"}, ttlSecondsAfterFinished=60))
    reconcile(kept)
    assert (reconcile(kept).requeue_after or 0) > 60, "once its status is written"
    assert not [write for write in kept.writes if write[0] == "delete"]


def a_raw_service(name: str, **spec: Any) -> dict[str, Any]:
    metadata = {"name": name, "namespace": "ml", "uid": f"{name}-uid", "ownerReferences": [OWNER]}
    return {
        "kind": "InferenceService",
        "metadata": metadata,
        "spec": {"model": {"source": "pvc://models/tiny"}, **spec},
    }


def test_an_adapter_is_added_by_a_field_manager_of_its_own() -> None:
    service = a_raw_service("chat", adaptersFrom="Jobs")
    objects = stored(a_raw_job({"adapter": ADAPTER}, serve={"into": "chat"}), service)
    assert reconcile(objects).acted
    assert objects.writes[0] == ("apply", "inferenceservices", "chat", "finetune-operator/tone")


def test_a_jobs_own_endpoint_is_applied_and_goes_with_its_cancelled_job() -> None:
    objects = stored(a_raw_job({"adapter": ADAPTER}, serve={}))
    assert reconcile(objects).acted
    assert objects.writes == [("apply", "inferenceservices", "tone", "finetune-operator")]
    cancelled = {
        "adapter": ADAPTER,
        "reason": "CancelledByUser",
        "conditions": [{**FAILED, "reason": "CancelledByUser"}],
    }
    objects = stored(a_raw_job(cancelled, serve={}, cancel=True), a_raw_service("tone"))
    reconcile(objects)
    assert ("delete", "inferenceservices", "tone", "tone-uid") in objects.writes


def test_the_job_that_is_continued_from_is_read_until_its_adapter_is_known() -> None:
    polite = {"kind": "FinetuneJob", "metadata": {"name": "polite"}, "status": {"phase": "Running"}}
    objects = stored(a_raw_job(continueFrom={"finetuneJob": "polite"}), polite)
    reconcile(objects)
    assert outcome_of(objects)[:2] == ("Pending", "WaitingForAdapter")
    assert "it is Running" in outcome_of(objects)[2]
    objects.put({**polite, "status": {"adapter": {**ADAPTER, "name": "polite"}}}, "finetunejobs")
    reconcile(objects)
    assert status_of(objects)["initialAdapter"] == {"uri": ADAPTER["uri"], "digest": ADAPTER["digest"]}
    gone = stored(a_raw_job(continueFrom={"finetuneJob": "polite"}))
    reconcile(gone)
    assert outcome_of(gone)[:2] == ("Failed", "AdapterNotFound")


def test_a_malformed_job_gets_a_condition_and_nothing_else_happens() -> None:
    objects = stored(a_raw_job(model={"source": 7}), JOB)
    assert reconcile(objects) == ReconcileResult()
    assert objects.writes == [("patch_status", "finetunejobs", "tone")]
    (condition,) = objects.objects["finetunejobs", "tone"]["status"]["conditions"]
    assert (condition["type"], condition["status"], condition["reason"]) == ("Validated", "False", "SpecInvalid")
    assert "spec.model.source" in condition["message"]


def test_each_line_of_the_log_names_the_job_and_the_child(caplog: pytest.LogCaptureFixture) -> None:
    expired = {"conditions": [SUCCEEDED], "completionTime": "2026-01-02T03:04:05Z"}
    forbidden = stored(a_raw_job())
    forbidden.refusals["PersistentVolumeClaim"] = 403
    with caplog.at_level(logging.INFO, logger="finetune_operator"):
        for objects in (
            stored(a_raw_job()),
            stored(a_raw_job({"adapter": ADAPTER}, serve={})),
            stored(a_raw_job({"adapter": ADAPTER}, serve={"into": "chat"}), a_raw_service("chat", adaptersFrom="Jobs")),
            stored(a_raw_job(expired, ttlSecondsAfterFinished=60)),
            stored(a_raw_job({"attempt": 1}, suspend=True), JOB, {**POD, "status": {"phase": "Running", **RUNNING}}),
            forbidden,
        ):
            reconcile(objects)
    names = ("job", "child", "adapter", "error")
    lines = {
        (record.message, *(f"{name}={record.__dict__[name]}" for name in names if name in record.__dict__))
        for record in caplog.records
        if record.name == "finetune_operator.reconcile.job.reconcile"
    }
    assert lines == {
        ("created", "job=ml/tone", "child=PersistentVolumeClaim/finetune-adapters"),
        ("created", "job=ml/tone", f"child=Job/{CHILD}"),
        ("applied", "job=ml/tone", "child=InferenceService/tone"),
        ("added", "job=ml/tone", "child=InferenceService/chat", "adapter=tone"),
        ("finished job has expired", "job=ml/tone"),
        ("deleting Job", "job=ml/tone", f"child={CHILD}"),
        (
            "child was refused",
            "error=cannot create persistentvolumeclaims finetune-adapters: 403: a policy forbids it",
        ),
    }

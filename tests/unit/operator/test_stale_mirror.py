"""A mirror that is behind makes no second trainer, and concludes nothing from what it does not show."""

import asyncio
import copy
import json
from typing import Any

import pytest

from finetune_operator.errors import ClusterError
from finetune_operator.handlers.watches import Watches
from finetune_operator.io.cluster import CLAIMS, FINETUNE_JOBS, JOBS, PODS, Resource
from finetune_operator.io.progress import ProgressReader
from finetune_operator.process.health import Health
from finetune_operator.reconcile.context import Context
from finetune_operator.reconcile.job.reconcile import reconcile_finetune_job
from finetune_operator.settings import Settings
from support.objects.raw_objects import CHILD, JOB, POD, TIME

NEW = {**JOB, "status": {}}
FAILURE = {"attempt": 1, "reason": "LossDiverged", "message": "m", "finishTime": "2026-01-01T00:00:00Z"}
RETRYING = {**JOB, "status": {**JOB["status"], "failedAttempts": 1, "lastFailure": FAILURE}}
SECOND_POD = {**POD, "metadata": {**POD["metadata"], "uid": "uid-2", "name": "tone-2-x"}}
SUSPENDED = {**JOB, "spec": {**JOB["spec"], "suspend": True}}


def at(version: int, raw: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {**raw, **fields, "metadata": {**raw["metadata"], "resourceVersion": str(version)}}


class ApiServer:
    """Holds what is true, and notes what it is asked for and told."""

    on_written: Any = None

    def __init__(self, *objects: tuple[Resource, Any]) -> None:
        self.objects = objects
        self.reads: list[str] = []
        self.writes: list[str] = []

    async def get(self, resource: Resource, namespace: str, name: str) -> Any:
        self.reads.append(f"get {resource.plural}")
        if resource == CLAIMS:
            return {"metadata": {"name": name}}
        return next((copy.deepcopy(raw) for kind, raw in self.objects if kind == resource), None)

    async def list(self, resource: Resource, namespace: str | None, selector: str = "") -> list[Any]:
        self.reads.append(f"list {resource.plural}")
        return [copy.deepcopy(raw) for kind, raw in self.objects if kind == resource]

    async def create(self, manifest: Any) -> Any:
        self.writes.append(f"create {manifest['metadata']['name'][-2:]}")
        return manifest

    async def patch_status(self, resource: Resource, metadata: Any, status: Any) -> bool:
        self.writes.append(f"status {metadata['resourceVersion']} {status.get('phase')}")
        return True

    async def create_event(self, namespace: str, event: Any) -> None: ...

    async def delete(self, resource: Resource, namespace: str, name: str, uid: str) -> None:
        self.writes.append(f"delete {resource.plural}")


def reconcile(server: ApiServer, *mirrored: tuple[Resource, Any]) -> ApiServer:
    async def scenario() -> None:
        watches = Watches(server, Settings(), lambda key, delay: None, Health())  # type: ignore[arg-type]
        for resource, raw in mirrored:
            watches.kinds[resource].put(raw)
        context = Context(server, ProgressReader(None), Settings(), watches.cache)  # type: ignore[arg-type]
        await reconcile_finetune_job(context, "ml", "tone")

    asyncio.run(scenario())
    return server


def test_the_first_attempt_costs_its_claims_and_one_read_of_the_job() -> None:
    server = reconcile(ApiServer((FINETUNE_JOBS, NEW)), (FINETUNE_JOBS, NEW))
    assert server.reads == ["get persistentvolumeclaims"] * 2 + ["get finetunejobs"]
    assert server.writes == ["create a1"]


def test_a_running_attempt_costs_no_read() -> None:
    mirrored = [(FINETUNE_JOBS, JOB), (JOBS, CHILD), (PODS, POD)]
    assert reconcile(ApiServer(), *mirrored).reads == []


@pytest.mark.parametrize(
    "change",
    [{"spec": {**JOB["spec"], "cancel": True}}, {"spec": {**JOB["spec"], "suspend": True}}],
)
def test_a_job_that_was_cancelled_or_suspended_meanwhile_starts_no_trainer(change: Any) -> None:
    server = reconcile(ApiServer((FINETUNE_JOBS, at(9, NEW, **change))), (FINETUNE_JOBS, NEW))
    assert not any(write.startswith("create") for write in server.writes)
    assert server.writes[0].startswith("status 9 "), "it is decided on what the API server says"


def test_a_job_that_is_gone_starts_no_trainer() -> None:
    server = ApiServer()
    with pytest.raises(ClusterError) as caught:
        reconcile(server, (FINETUNE_JOBS, NEW))
    assert caught.value.is_conflict
    assert server.writes == []


def test_no_second_attempt_starts_beside_a_pod_that_the_mirror_does_not_show() -> None:
    server = reconcile(ApiServer((FINETUNE_JOBS, RETRYING), (PODS, SECOND_POD)), (FINETUNE_JOBS, RETRYING))
    assert server.writes == []
    server = reconcile(ApiServer((FINETUNE_JOBS, RETRYING)), (FINETUNE_JOBS, RETRYING))
    assert server.writes == ["create a2"]
    assert {"list jobs", "list pods"} <= set(server.reads)


def test_an_attempt_is_not_called_deleted_because_the_mirror_does_not_show_it() -> None:
    server = reconcile(ApiServer((FINETUNE_JOBS, JOB), (JOBS, CHILD), (PODS, POD)), (FINETUNE_JOBS, JOB))
    assert not any("Retrying" in write for write in server.writes)
    server = reconcile(ApiServer((FINETUNE_JOBS, JOB)), (FINETUNE_JOBS, JOB))
    assert any("Retrying" in write for write in server.writes)


def test_a_job_is_not_called_suspended_while_a_pod_is_left_that_the_mirror_does_not_show() -> None:
    server = reconcile(ApiServer((FINETUNE_JOBS, SUSPENDED), (PODS, POD)), (FINETUNE_JOBS, SUSPENDED))
    assert not any("Suspended" in write for write in server.writes)


def test_a_trainer_that_has_just_succeeded_is_not_stopped() -> None:
    """Its result would be deleted with its Job."""
    outcome = {"result": "Succeeded", "reason": "Trained", "step": 3}
    outcome["adapter"] = {"path": "tone", "digest": f"sha256:{'a' * 64}", "sizeBytes": 1}  # type: ignore[assignment]
    ended = {"exitCode": 0, "message": json.dumps(outcome), "startedAt": TIME, "finishedAt": TIME}
    status = {"phase": "Succeeded", "containerStatuses": [{"name": "trainer", "state": {"terminated": ended}}]}
    truth = ApiServer((FINETUNE_JOBS, SUSPENDED), (JOBS, CHILD), (PODS, at(9, POD, status=status)))
    server = reconcile(truth, (FINETUNE_JOBS, SUSPENDED), (JOBS, CHILD), (PODS, POD))
    assert "delete jobs" not in server.writes
    assert any("Succeeded" in write for write in server.writes)

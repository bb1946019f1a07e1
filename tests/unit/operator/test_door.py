"""Nothing that lies in etcd, and nothing that a proxy answers, harms anything but itself."""

import asyncio
import copy
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finetune_api.contract import FINETUNE_JOB_KIND, INFERENCE_SERVICE_KIND
from finetune_operator.errors import ClusterError, MalformedReplyError
from finetune_operator.handlers.keys import Key, keys_of
from finetune_operator.handlers.resync import Resync
from finetune_operator.io.cluster import (
    CONFIG_MAPS,
    DEPLOYMENTS,
    FINETUNE_JOBS,
    INFERENCE_SERVICES,
    JOBS,
    PODS,
    Resource,
)
from finetune_operator.io.progress import ProgressReader
from finetune_operator.io.replies import Request, is_identified, read_error, read_object, read_page
from finetune_operator.process.health import Health
from finetune_operator.reconcile.context import Context
from finetune_operator.reconcile.job.reconcile import reconcile_finetune_job
from finetune_operator.reconcile.projections import is_settled, phase_of
from finetune_operator.reconcile.service.reconcile import reconcile_inference_service
from support.objects.operator_objects import SETTINGS
from support.objects.raw_objects import CHILD, CHILDREN, DEPLOYMENT, JOB, JSON, POD, SERVICE, identified, poisoned

REQUEST = Request("list", "jobs *")
FUZZ = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


class Stored:
    """A cluster that holds one object of each kind, and accepts every write."""

    def __init__(self, **objects: Any) -> None:
        self.objects = {"finetunejobs": JOB, "jobs": CHILD, "pods": POD, "inferenceservices": SERVICE, **objects}
        self.events: list[str] = []

    async def get(self, resource: Resource, namespace: str, name: str) -> Any:
        return copy.deepcopy(self.objects.get(resource.plural))

    async def list(self, resource: Resource, namespace: str | None, selector: str = "") -> list[Any]:
        return [copy.deepcopy(self.objects[resource.plural])] if resource.plural in self.objects else []

    async def create(self, manifest: Any) -> Any:
        return None

    async def apply(self, manifest: Any, manager: str = "") -> Any:
        return manifest

    async def patch_status(self, resource: Resource, metadata: Any, status: Any) -> bool:
        return True

    async def create_event(self, namespace: str, event: Any) -> None:
        self.events.append(event["reason"])

    async def annotate(self, *_: Any) -> None: ...

    async def patch_condition(self, *_: Any) -> None: ...

    async def delete(self, *_: Any) -> None: ...


def context_of(cluster: Stored) -> Context:
    return Context(cluster=cluster, progress=ProgressReader(None), settings=SETTINGS)  # type: ignore[arg-type]


@FUZZ
@given(st.data())
@pytest.mark.parametrize(("plural", "raw"), [("finetunejobs", JOB), ("jobs", CHILD), ("pods", POD)])
def test_no_form_of_an_object_ends_the_reconcile_of_a_job(plural: str, raw: Any, data: st.DataObject) -> None:
    cluster = Stored(**{plural: data.draw(poisoned(raw))})
    asyncio.run(reconcile_finetune_job(context_of(cluster), "ml", "tone"))


@FUZZ
@given(st.data())
@pytest.mark.parametrize(
    ("plural", "raw"), [("inferenceservices", SERVICE), ("deployments", DEPLOYMENT), ("pods", POD), ("configmaps", {})]
)
def test_no_form_of_an_object_ends_the_reconcile_of_a_service(plural: str, raw: Any, data: st.DataObject) -> None:
    raw = raw or identified(CHILDREN["ConfigMap"], "chat-adapters")
    cluster = Stored(**{"deployments": DEPLOYMENT, plural: data.draw(poisoned(raw))})
    asyncio.run(reconcile_inference_service(context_of(cluster), "ml", "chat"))


@FUZZ
@given(poisoned(JOB), JSON)
def test_no_form_of_an_object_ends_the_resync(raw: Any, labels: Any) -> None:
    class OneJob(Stored):
        async def list(self, resource: Resource, namespace: str | None, selector: str = "") -> list[Any]:
            return [raw, JOB] if resource == FINETUNE_JOBS else [SERVICE]

    marked: list[Key] = []
    health = Health()
    asyncio.run(Resync(OneJob(), SETTINGS, marked.append, health).once())  # type: ignore[arg-type]
    assert marked[0] == Key(INFERENCE_SERVICE_KIND, "ml", "chat")
    assert marked[-1] == Key(FINETUNE_JOB_KIND, "ml", "tone"), "the healthy job is marked whatever the other is"
    assert isinstance(is_settled(raw), bool)
    assert phase_of(raw).isalpha()
    assert isinstance(keys_of({"namespace": "ml", "labels": labels}), list)


@pytest.mark.parametrize(
    ("plural", "change", "words"),
    [
        ("pods", {"status": {"phase": ["Running"]}}, "Pod ml/tone-1-x cannot be read: phase is ['Running']"),
        ("jobs", {"metadata": {**CHILD["metadata"], "labels": ["x"]}}, "Job ml/tone-1 cannot be read: labels is ['x']"),
    ],
)
def test_a_child_that_cannot_be_read_is_reported_once(plural: str, change: Any, words: str) -> None:
    raw = {"pods": POD, "jobs": CHILD}[plural]
    cluster = Stored(**{plural: {**raw, **change}})
    context = context_of(cluster)
    for _ in range(3):
        assert asyncio.run(reconcile_finetune_job(context, "ml", "tone")).requeue_after == 15
    assert cluster.events == ["ChildUnreadable"]
    assert any(words in report for report in context.reported)


@pytest.mark.parametrize("status", ["text", ["list"], {"phase": {"a": 1}}, {"phase": ["Running"]}])
def test_a_job_with_a_status_of_another_form_gets_an_event(status: Any) -> None:
    cluster = Stored(finetunejobs={**JOB, "status": status})
    asyncio.run(reconcile_finetune_job(context_of(cluster), "ml", "tone"))
    assert cluster.events == ["SpecInvalid"]


HTML = b"<html><body>Sign in</body></html>"


@pytest.mark.parametrize("text", [b"", HTML, b'{"kind": "PodList", "items": [', b"[]", b"null", b'{"kind": "Status"}'])
def test_a_reply_of_another_form_is_no_answer(text: bytes) -> None:
    for read in (read_object, read_page):
        with pytest.raises(MalformedReplyError) as caught:
            read(REQUEST, text, "Pod")
        assert caught.value.is_outage
        assert not caught.value.is_refusal


@pytest.mark.parametrize("status", [400, 403, 404, 409, 422])
def test_what_a_proxy_refuses_says_nothing_about_an_object(status: int) -> None:
    assert read_error(REQUEST, status, HTML).status == 0
    own = json.dumps({"kind": "Status", "message": "no"}).encode()
    assert (read_error(REQUEST, status, own).status, read_error(REQUEST, status, own).message) == (status, "no")


@pytest.mark.parametrize("status", [302, 401, 429, 500, 503])
def test_other_errors_are_those_of_whoever_answers(status: int) -> None:
    error = read_error(REQUEST, status, HTML)
    assert (error.status, error.is_refusal) == (status, False)
    assert error.is_outage is (status != 401)


@FUZZ
@given(st.binary(max_size=40) | JSON.map(lambda value: json.dumps(value).encode()), st.integers(300, 599))
def test_any_reply_is_an_object_or_one_kind_of_error(text: bytes, status: int) -> None:
    for read in (read_object, read_page):
        with pytest.raises(ClusterError):
            read(REQUEST, text, "Pod")
    assert isinstance(read_error(REQUEST, status, text), ClusterError)


@FUZZ
@given(st.lists(JSON, max_size=4))
def test_a_page_has_only_objects_with_an_identity(items: list[Any]) -> None:
    text = json.dumps({"kind": "PodList", "metadata": {"resourceVersion": "9"}, "items": [*items, POD]}).encode()
    page = read_page(REQUEST, text, "Pod")
    assert page.items[-1]["metadata"]["name"] == "tone-1-x"
    assert all(is_identified(REQUEST, item) for item in page.items)
    assert (page.version, page.following) == ("9", "")


def test_the_resources_have_the_kinds_of_their_lists() -> None:
    kinds = [r.kind for r in (FINETUNE_JOBS, INFERENCE_SERVICES, JOBS, PODS, DEPLOYMENTS, CONFIG_MAPS)]
    assert kinds == ["FinetuneJob", "InferenceService", "Job", "Pod", "Deployment", "ConfigMap"]

"""What a pass over an InferenceService does when pods are slow, or may not be touched."""

import asyncio
from typing import Any

import pytest

from finetune_operator.errors import ClusterError
from finetune_operator.reconcile.context import Context
from finetune_operator.reconcile.service import reconcile as inference_service
from finetune_operator.reconcile.service.adapter_verdicts import ProbeRequest
from finetune_operator.reconcile.service.plan import ServicePlan
from finetune_operator.reconcile.service.server_pod import ServerPod
from support.cluster.fake_endpoint import FINGERPRINT, FakeEndpoint, serving
from support.objects.operator_objects import SETTINGS, a_service

POD = ServerPod(name="s0", uid="u0")


def test_adapters_that_a_slow_server_leaves_no_time_for_are_left_to_the_next_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(inference_service, "PROBING_SECONDS", 0.0)
    names = ("a", "b")
    adapters = [{"name": n, "source": f"pvc://c/{n}", "fingerprint": FINGERPRINT.to_dict()} for n in names]
    service = a_service(adapters=adapters)
    requests = [ProbeRequest(POD, adapter, adapter.name, None) for adapter in service.spec.adapters]
    with FakeEndpoint(lambda *_: [{"name": name, "path": f"/{name}"} for name in names]) as endpoint:
        endpoint.behaviors["ml"] = serving("a")
        url = endpoint.url + "/{namespace}/{pod}"
        context = a_context(None, server_url_template=url)
        answers = asyncio.run(inference_service._probe(context, service, tuple(requests)))
    assert [key for key, result in answers.items() if result.verified == "True"] == [("s0", 0, "a")]
    assert len(answers) == 1


@pytest.mark.parametrize(("status", "is_fatal"), [(403, False), (422, False), (500, True)])
def test_a_pod_that_may_not_be_annotated_keeps_nothing_else_from_being_done(status: int, is_fatal: bool) -> None:
    class Forbidding:
        async def annotate(self, *_: Any) -> None:
            raise ClusterError("annotate", "pods ml/s0", status, "denied")

    plan = ServicePlan(refresh=(POD,), adapter_list="1")
    act = inference_service._carry_out(a_context(Forbidding()), a_service(), plan)
    if not is_fatal:
        asyncio.run(act)
        return
    with pytest.raises(ClusterError):
        asyncio.run(act)


def a_context(cluster: Any, **settings: Any) -> Context:
    return Context(cluster=cluster, progress=None, settings=SETTINGS.model_copy(update=settings))  # type: ignore[arg-type]

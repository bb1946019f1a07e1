"""Messages are for people: rewording any of them changes no decision. Machines compare reasons and fields."""

import json
import re
from dataclasses import fields, is_dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from finetune_api.reasons import Reason
from finetune_api.v1alpha1 import FinetuneJobStatus, InferenceService
from finetune_operator.reconcile.job.attempt_outcome import parse_outcome
from finetune_operator.reconcile.job.plan import Observed
from finetune_operator.reconcile.service.plan import ServiceObserved
from finetune_operator.reconcile.service.readiness_gates import ReadinessGate, build_gate_condition
from finetune_operator.reconcile.service.server_pod import ServerPod, parse_server_pod
from support.cluster.played_cluster import PlayedCluster, an_adapter
from support.objects.decisions import decide_for, decide_job
from support.objects.job_situations import TIMES, observations, specs, statuses
from support.objects.operator_objects import NOW, a_job, a_service

WORDS = "said in other words"


def reworded(value: Any, words: str = WORDS) -> Any:
    """The same value with other words in each message; an Outcome, which is data, stays."""
    if isinstance(value, BaseModel):
        named = {name: getattr(value, name) for name in type(value).model_fields}
        return value.model_copy(update={name: _reworded_field(name, field, words) for name, field in named.items()})
    if is_dataclass(value) and not isinstance(value, type):
        named = {field.name: getattr(value, field.name) for field in fields(value)}
        return replace(value, **{name: _reworded_field(name, field, words) for name, field in named.items()})
    if isinstance(value, tuple | list):
        return type(value)(reworded(item, words) for item in value)
    if isinstance(value, dict):
        return {key: reworded(item, words) for key, item in value.items()}
    return value


def _reworded_field(name: str, value: Any, words: str) -> Any:
    if name in ("message", "log_tail") and not words:
        return words
    if name in ("message", "unreadable") and isinstance(value, str):
        return value if parse_outcome(value) is not None else words
    if name in ("unschedulable", "waiting", "disruption") and value is not None:
        return value[0], words
    return reworded(value, words)


def decisions(decision: Any) -> Any:
    """The decision without its messages."""
    return reworded(decision, "")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(statuses, observations, specs, TIMES)
def test_rewording_any_message_changes_no_decision_about_a_job(
    status: FinetuneJobStatus, seen: Observed, spec: dict[str, Any], now: datetime
) -> None:
    plain = decide_job(a_job(status, **spec), seen, now)
    other = decide_job(a_job(reworded(status), **spec), reworded(seen), now)
    assert decisions(plain) == decisions(other)


EVENTS = st.sampled_from([("edit", "1"), ("edit", "2"), ("edit", "3"), ("restart", None), *[("pass", None)] * 4])


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(["Hot", "Rolling"]), st.lists(EVENTS, max_size=8), st.booleans())
def test_rewording_any_message_changes_no_decision_about_a_service(
    mode: str, script: list[tuple[str, str | None]], is_lossy: bool
) -> None:
    played = Reworded(a_service(adapterClaim="c", adapters=[an_adapter("1")], rollout={"mode": mode}))
    played.reconcile()
    for what, version in script:
        if not played.pods:
            played.add_pod()
        if what == "edit":
            played.edit(version)
        elif what == "restart":
            played.restart(sorted(played.pods)[0])
        played.visit()
        played.reconcile(is_lossy=is_lossy)


class Reworded(PlayedCluster):
    """Each decision is taken twice: on what is there, and on the same in other words."""

    def _decide(self, answers: Any) -> Any:
        plan = super()._decide(answers)
        other = decide_for(reworded(self.service), reworded(self.seen()), reworded(dict(answers)), NOW, self.settings)
        assert decisions(plan) == decisions(other)
        return plan


def a_gated_pod(restarts: int = 0, **condition: str) -> dict[str, Any]:
    """A raw server pod of a Rolling service, whose process started at NOW."""
    state = {"running": {"startedAt": NOW.strftime("%Y-%m-%dT%H:%M:%SZ")}}
    return {
        "metadata": {"name": "s0", "uid": "0a-1b", "resourceVersion": "1"},
        "spec": {"readinessGates": [{"conditionType": "finetune.dev/adapters-verified"}]},
        "status": {
            "phase": "Running",
            "containerStatuses": [{"name": "server", "restartCount": restarts, "state": state}],
            "conditions": [
                {"type": "ContainersReady", "status": "True"},
                {"type": "finetune.dev/adapters-verified", **condition},
            ],
        },
    }


def time_of(seconds: float) -> str:
    return (NOW + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


def test_the_reason_of_an_open_gate_identifies_the_process_and_fits_kubernetes_grammar() -> None:
    pod = parse_server_pod(a_gated_pod(restarts=2, status="False", reason="Verifying"))
    assert not pod.is_open
    condition = build_gate_condition(ReadinessGate(pod, is_open=True), NOW)
    assert condition["reason"] == "AdaptersVerified:0a1b:2"
    assert re.fullmatch(r"[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?", condition["reason"])
    assert condition["lastTransitionTime"] == time_of(0)
    again = parse_server_pod(a_gated_pod(restarts=2, **{**condition, "message": "in other words"}))
    assert (again.is_open, again.verified_process) == (True, again.process)
    assert not ReadinessGate(again, is_open=True).is_change
    restarted = parse_server_pod(a_gated_pod(restarts=3, **condition))
    assert restarted.is_open
    assert restarted.verified_process != restarted.process
    closed = build_gate_condition(ReadinessGate(restarted, is_open=False), NOW)
    assert (closed["status"], closed["reason"]) == ("False", "Verifying")
    kept = build_gate_condition(ReadinessGate(restarted, is_open=True), NOW)
    assert "lastTransitionTime" not in kept, "it did not cease to get traffic"


LEGACY = {
    "status": "True",
    "reason": "Completed",
    "message": "Shown to answer with its adapters; restarts of its server so far: 0.",
}
"""As releases wrote it that compared the message."""


def gates_of(pod: ServerPod, service: InferenceService) -> list[tuple[bool, bool]]:
    played = PlayedCluster(service)
    played.reconcile()
    annotations = {"finetune.dev/config": played.template}
    seen = ServiceObserved(played.seen().live, (replace(pod, annotations=annotations),))
    return [(gate.is_open, gate.is_transition) for gate in decide_for(service, seen).gates]


def test_an_open_pod_of_the_release_before_is_not_closed_by_the_upgrade_whatever_its_message_says() -> None:
    service = a_service(adapterClaim="c", adapters=[an_adapter("1")], rollout={"mode": "Rolling"})
    for message in (LEGACY["message"], "in other words"):
        raw = a_gated_pod(restarts=1, **{**LEGACY, "message": message, "lastTransitionTime": time_of(5)})
        pod = parse_server_pod(raw)
        assert (pod.is_open, pod.verified_process) == (True, pod.process)
        assert gates_of(pod, service) == []


def test_a_pod_of_the_release_before_whose_server_restarted_after_its_gate_was_opened_is_verified_again() -> None:
    service = a_service(adapterClaim="c", adapters=[an_adapter("1")], rollout={"mode": "Rolling"})
    pod = parse_server_pod(a_gated_pod(restarts=1, **LEGACY, lastTransitionTime=time_of(-5)))
    assert pod.is_open
    assert gates_of(pod, service) == [(False, True)]
    assert gates_of(parse_server_pod(a_gated_pod(**LEGACY)), service) == [(False, True)], "nobody knows since when"


def test_a_refused_version_names_what_clients_still_get_once_whatever_the_probe_said() -> None:
    played = PlayedCluster(a_service(adapterClaim="c", adapters=[an_adapter("1")]))
    played.reconcile()
    played.add_pod()
    for version in (None, None, "3", None, None):
        if version:
            played.edit(version)
        played.visit()
        played.reconcile()
    (adapter,) = played.service.status.adapters
    assert (adapter.verified, adapter.reason) == ("False", Reason.ADAPTER_HAS_NO_EFFECT)
    assert adapter.message == "like the base Clients still get version sha256:111111111111."
    assert json.dumps(played.service.status.to_dict()).count("Clients still get") == 2, "there and in the condition"


def test_a_gate_of_the_release_before_counts_for_no_process_while_its_container_is_not_running() -> None:
    raw = a_gated_pod(restarts=1, **LEGACY, lastTransitionTime=time_of(5))
    raw["status"]["containerStatuses"][0]["state"] = {"waiting": {"reason": "CrashLoopBackOff"}}
    pod = parse_server_pod(raw)
    assert pod.is_open
    assert pod.verified_process != pod.process

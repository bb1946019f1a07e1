"""Whatever happens to a Rolling service, no pod without effect gets traffic, and no change of the spec takes traffic from others.

Whole lives are played under a Deployment controller that obeys maxSurge 1 and maxUnavailable 0: the spec is edited, pods are
evicted and restart, some versions are bad, some answers are lost. There is no memory but the objects themselves.
"""

import json
from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from operator_objects import CREATED, FINGERPRINT, NOW, SETTINGS, a_service

from finetune_api.constants import ANNOTATION_CONFIG
from finetune_api.reasons import Reason
from finetune_api.v1alpha1 import InferenceService, InferenceServiceStatus
from finetune_operator.probe import ProbeResult
from finetune_operator.reconcile.adapter_verdicts import Answers
from finetune_operator.reconcile.decide_service import ServiceObserved, ServicePlan, decide_service
from finetune_operator.reconcile.views import PodView
from finetune_operator.resources import Manifest
from finetune_operator.resources.serving import config_hash

GOOD, BAD, ABSENT = "good", "bad", "absent"
VERSIONS = {"1": GOOD, "2": GOOD, "3": BAD, "4": ABSENT}
"""What is in the folder of each version."""
REPLICAS = 2


def a_rolling_service(version: str | None, chat: str | None = None) -> InferenceService:
    fingerprint = {**FINGERPRINT.to_dict(), **({"chat": chat} if chat else {})}
    adapter = {"name": "a", "source": f"pvc://c/{version}", "digest": f"sha256:{(version or '') * 64}"}
    adapters = [{**adapter, "fingerprint": fingerprint}] if version else []
    return a_service(adapterClaim="c", adapters=adapters, replicas=REPLICAS, rollout={"mode": "Rolling"})


@dataclass
class World:
    """A cluster that obeys plans, and its Deployment controller."""

    service: InferenceService = field(default_factory=lambda: a_rolling_service("1"))
    live: dict[str, Manifest] = field(default_factory=dict)
    sizes: Counter[str] = field(default_factory=Counter)
    """Wanted pods by configuration: the ReplicaSets."""
    pods: dict[str, PodView] = field(default_factory=dict)
    started: int = 0
    writes: int = 0
    probes: int = 0

    @property
    def in_traffic(self) -> list[PodView]:
        return [pod for pod in self.pods.values() if pod.is_ready]

    def edit(self, version: str | None, chat: str | None = None) -> None:
        edited = a_rolling_service(version, chat)
        metadata = edited.metadata.model_copy(update={"generation": self.service.metadata.generation + 1})
        self.service = edited.model_copy(update={"metadata": metadata, "status": self.service.status})

    def restart(self, name: str) -> None:
        pod = self.pods[name]
        self.pods[name] = replace(pod, restarts=pod.restarts + 1, are_containers_ready=False, is_ready=False)

    def is_replaceable(self, name: str) -> bool:
        """Whether a pod's successor may be let in: a configuration between two edits, never proven on all pods, is not noted."""
        config = config_of(self.pods[name])
        return config == self._template() or config_hash(config) == self.service.status.proven_config

    def step(self, lost: bool = False) -> None:
        """One pass, as `reconcile_inference_service` makes it, then what kubelet and controllers do; see the other fuzz test."""
        plan = self._decide({})
        self._obey(plan)
        if plan.probes:
            self.probes += len(plan.probes)
            asked = plan.probes[:1] if lost else plan.probes
            self._obey(self._decide({request.key: self._answer(request.pod) for request in asked}))
        for pod in self.in_traffic:
            version = version_of(pod)
            assert version is None or VERSIONS[version] == GOOD, "what was disproven gets no traffic"
        status = self.service.status
        for adapter, wanted in zip(status.adapters, self.service.spec.adapters, strict=False):
            if adapter.verified == "True" and status.observed_generation == self.service.metadata.generation:
                assert adapter.served is not None
                assert adapter.served.digest == wanted.digest, "what is called verified is what clients get"
                assert {version_of(pod) for pod in self.in_traffic} <= {wanted.source[-1]}, "and they get nothing else"
        self._roll()

    def _decide(self, answers: Answers) -> ServicePlan:
        total, ready = len(self.pods), len(self.in_traffic)
        counts = {"observedGeneration": 1, "replicas": total, "readyReplicas": ready}
        live = dict(self.live)
        if "Deployment" in live:
            counts["updatedReplicas"] = sum(config_of(pod) == self._template() for pod in self.pods.values())
            live["Deployment"] = {**live["Deployment"], "status": counts}
        seen = ServiceObserved(live, tuple(self.pods.values()))
        plan = decide_service(self.service, seen, answers, NOW, SETTINGS)
        assert plan == decide_service(self.service, seen, answers, NOW, SETTINGS), "the same input gives the same plan"
        return plan

    def _obey(self, plan: ServicePlan) -> None:
        for manifest in plan.apply:
            self.live[manifest["kind"]] = manifest
        reread = InferenceServiceStatus.model_validate(plan.status.to_dict())
        self.writes += len(plan.apply) + len(plan.gates) + (plan.status != self.service.status)
        self.service = self.service.model_copy(update={"status": reread})
        for gate in plan.gates:
            pod = replace(self.pods[gate.pod.name], let_in=gate.message if gate.is_open else None)
            self.pods[pod.name] = replace(pod, is_ready=pod.are_containers_ready and gate.is_open)

    def _answer(self, pod: PodView) -> ProbeResult:
        version = version_of(pod)
        assert version is not None
        if VERSIONS[version] == ABSENT:
            return ProbeResult("False", Reason.ADAPTER_INCOMPATIBLE, "no folder", loaded=False)
        if VERSIONS[version] == BAD:
            return ProbeResult("False", Reason.ADAPTER_HAS_NO_EFFECT, "like the base")
        return ProbeResult("True", Reason.FINGERPRINT_MATCHED, "0.001")

    def _template(self) -> str:
        config: str = self.live["Deployment"]["spec"]["template"]["metadata"]["annotations"][ANNOTATION_CONFIG]
        return config

    def _roll(self) -> None:
        """What the kubelet and the controllers of Deployment and ReplicaSets do before the next pass."""
        for name, pod in self.pods.items():
            self.pods[name] = replace(pod, are_containers_ready=True, is_ready=pod.let_in is not None)
        new = self._template()
        if self.sizes[new] < REPLICAS and self.sizes.total() <= REPLICAS:
            self.sizes[new] += 1
        unavailable = self.sizes[new] - sum(config_of(pod) == new for pod in self.in_traffic)
        removable = self.sizes.total() - REPLICAS - unavailable
        for config in self.sizes:
            spare = sorted((pod for pod in self.pods.values() if config_of(pod) == config), key=lambda p: p.is_ready)
            while config != new and spare:
                if not (len(self.in_traffic) > REPLICAS if spare[0].is_ready else removable > 0):
                    break
                self.sizes[config] -= 1
                removable -= 1
                del self.pods[spare.pop(0).name]
            for pod in spare[self.sizes[config] :]:
                del self.pods[pod.name]
            for _ in range(self.sizes[config] - len(spare)):
                self.started += 1
                name = f"s{self.started}"
                values: dict[str, Any] = {"annotations": {ANNOTATION_CONFIG: config}, "started_at": CREATED}
                self.pods[name] = PodView(name=name, is_gated=True, are_containers_ready=True, **values)


def config_of(pod: PodView) -> str:
    return pod.annotations[ANNOTATION_CONFIG]


def version_of(pod: PodView) -> str | None:
    adapters = json.loads(config_of(pod))["adapters"]
    return adapters[0]["path"].rpartition("/")[2] if adapters else None


actions = st.sampled_from(
    [
        *(("edit", version) for version in (None, *VERSIONS)),
        *((what, None) for what in ("prove otherwise", "evict", "restart", "pass", "pass", "pass")),
    ]
)


@settings(max_examples=150, deadline=timedelta(seconds=10), suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(actions, st.booleans()), max_size=16))
def test_what_is_disproven_gets_no_traffic_and_an_edit_takes_none_away(
    script: list[tuple[tuple[str, str | None], bool]],
) -> None:
    world = World()
    for _ in range(4):
        world.step()
    assert len(world.in_traffic) == REPLICAS
    for number, ((what, version), is_lossy) in enumerate(script):
        names = sorted(world.pods)
        if what == "edit":
            world.edit(version)
        elif what == "prove otherwise" and world.service.spec.adapters:
            world.edit(world.service.spec.adapters[0].source[-1], chat=f"message {number}")
        elif what == "evict" and (replaceable := [name for name in names if world.is_replaceable(name)]):
            del world.pods[replaceable[0]]
        elif what == "restart":
            world.restart(names[-1])
        answering = len(world.in_traffic)
        world.step(lost=is_lossy)
        assert len(world.in_traffic) >= answering, "only evictions and restarts take pods out of traffic"
        for _ in range(4 if what in ("evict", "restart") else 0):
            # An edit at this moment would cost the old version a pod: the Deployment controller takes the idle ones first.
            world.step()
    for _ in range(12):
        world.step()
    writes, probes = world.writes, world.probes
    world.step()
    assert world.writes == writes, "settled means zero writes"
    assert len(world.in_traffic) >= REPLICAS, "the version before serves on, evicted or not"
    adapters = world.service.spec.adapters
    wanted = adapters[0].source[-1] if adapters else None
    if wanted is None or VERSIONS[wanted] != ABSENT:
        assert world.probes == probes, "and nobody is asked again"
    if wanted is None or VERSIONS[wanted] == GOOD:
        assert {version_of(pod) for pod in world.pods.values()} == {wanted}
        assert all(adapter.verified == "True" for adapter in world.service.status.adapters)

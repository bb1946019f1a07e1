"""Operator and servers through whole lives: a slow kubelet, crashes between any two steps, keys that change, pods that go.

The operator's decisions and the server's list are the real ones; a server's memory and the cluster are played. Whatever
happens, no server lets clients have a version that was not proven on all that were ready.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from operator_objects import CREATED, FINGERPRINT, NOW, SETTINGS, a_service
from pydantic import SecretStr

from finetune_api.constants import ANNOTATION_ADAPTER_LIST, ANNOTATION_CONFIG
from finetune_api.reasons import Reason
from finetune_api.serving import AdapterList, PromotionRequest
from finetune_api.v1alpha1 import InferenceService, InferenceServiceStatus
from finetune_inference.catalogue import UnknownModelError
from finetune_inference.promotion import ListedAdapters, WrongTokenError
from finetune_operator.probe import ProbeResult
from finetune_operator.reconcile.adapter_verdicts import ProbeRequest
from finetune_operator.reconcile.decide_service import ServiceObserved, ServicePlan, decide_service
from finetune_operator.reconcile.views import PodView
from finetune_operator.resources import Manifest
from finetune_operator.resources.serving import encoded_config
from finetune_operator.settings import Settings

GOOD, BAD, ABSENT = "12", "3", "4"
"""Versions with the tuned weights, without effect, and without a folder."""


def digest_of(version: str) -> str:
    return f"sha256:{version * 64}"


def keyed(key: str) -> Settings:
    return SETTINGS.model_copy(update={"promotion_key": SecretStr(key)})


class Server:
    """A server's names, each with a version."""

    def __init__(self) -> None:
        self.names: dict[str, str] = {}
        self._listed = ListedAdapters()

    def read(self, adapter_list: Manifest) -> None:
        text = adapter_list["data"]["adapters.json"]
        self._listed.update(AdapterList.model_validate_json(text).adapters)
        self._apply()

    def promote(self, request: PromotionRequest) -> None:
        version = self.names.get(request.candidate)
        if version is None:
            return
        try:
            self._listed.promote(request.candidate, request.token, digest_of(version))
        except (UnknownModelError, WrongTokenError):
            return
        self._apply()

    def answer(self, request: ProbeRequest) -> ProbeResult:
        version = self.names.get(request.name)
        if version is None or request.digest not in (None, digest_of(version)):
            return ProbeResult("Unknown", Reason.LOADING, "not yet", loaded=False)
        if version in BAD:
            return ProbeResult("False", Reason.ADAPTER_HAS_NO_EFFECT, "like the base")
        return ProbeResult("True", Reason.FINGERPRINT_MATCHED, "0.001", digest=digest_of(version))

    def _apply(self) -> None:
        found = {entry.name: entry.path[-1] for entry in self._listed.wanted}
        # A version that cannot be loaded leaves the one before it.
        self.names = {
            name: self.names.get(name, "") if version in ABSENT else version
            for name, version in found.items()
            if version not in ABSENT or name in self.names
        }


@dataclass
class World:
    """A cluster in which a pass of the operator may end after any of its steps."""

    service: InferenceService = field(default_factory=lambda: a_service(adapterClaim="c"))
    settings: Settings = field(default_factory=lambda: keyed("0"))
    live: dict[str, Manifest] = field(default_factory=dict)
    pods: dict[str, PodView] = field(default_factory=dict)
    servers: dict[str, Server] = field(default_factory=dict)
    proven: set[str] = field(default_factory=set)
    """Versions that the status ever named as served."""
    started: int = 0

    def edit(self, version: str | None) -> None:
        adapter = {"name": "a", "source": f"pvc://c/{version}", "fingerprint": FINGERPRINT.to_dict()}
        adapters = [{**adapter, "digest": digest_of(version)}] if version else []
        edited = a_service(adapterClaim="c", adapters=adapters)
        metadata = edited.metadata.model_copy(update={"generation": self.service.metadata.generation + 1})
        self.service = edited.model_copy(update={"metadata": metadata, "status": self.service.status})

    def add_pod(self) -> None:
        self.started += 1
        name, config = f"s{self.started}", {ANNOTATION_CONFIG: encoded_config(self.service)}
        self.pods[name] = PodView(name=name, uid=name, is_ready=True, started_at=CREATED, annotations=config)
        self.restart_server(name)

    def restart_server(self, name: str) -> None:
        self.servers[name] = Server()
        if "ConfigMap" in self.live:
            self.servers[name].read(self.live["ConfigMap"])

    def deliver(self) -> None:
        """The kubelet brings the list to all pods."""
        for server in self.servers.values():
            if "ConfigMap" in self.live:
                server.read(self.live["ConfigMap"])

    def reconcile(self, most_steps: int) -> None:
        """One pass, ended by a crash after so many steps."""
        for _ in zip(range(most_steps), self._steps(), strict=False):
            for server in self.servers.values():
                assert server.names.get("a") in {None, *self.proven}, "clients get what was proven, or nothing"

    def _steps(self) -> Iterator[None]:
        plan = self._decide({})
        yield from self._act(plan)
        yield self._write(plan)
        if not plan.probes:
            return
        answers = {request.key: self.servers[request.pod.name].answer(request) for request in plan.probes}
        plan = self._decide(answers)
        if plan.apply:
            return
        yield self._write(plan)
        if plan.is_switch:
            yield from self._act(self._decide({}))

    def _act(self, plan: ServicePlan) -> Iterator[None]:
        for manifest in plan.apply:
            self.live[manifest["kind"]] = manifest
            yield
        for pod in plan.refresh:
            for request in plan.promote:
                self.servers[pod.name].promote(request)
                yield
            notes = {**pod.annotations, ANNOTATION_ADAPTER_LIST: plan.adapter_list}
            self.pods[pod.name] = replace(self.pods[pod.name], annotations=notes)
            yield

    def _write(self, plan: ServicePlan) -> None:
        status = InferenceServiceStatus.model_validate(plan.status.to_dict())
        self.service = self.service.model_copy(update={"status": status})
        self.proven |= {adapter.served.source[-1] for adapter in status.adapters if adapter.served}

    def _decide(self, answers: Any) -> ServicePlan:
        live = self.live
        if "Deployment" in live:
            counts = dict.fromkeys(("replicas", "updatedReplicas", "readyReplicas"), len(self.pods))
            live = {**live, "Deployment": {**live["Deployment"], "status": {"observedGeneration": 1, **counts}}}
        return decide_service(
            self.service, ServiceObserved(live, tuple(self.pods.values())), answers, NOW, self.settings
        )


ALWAYS = 1000
"""More steps than any pass has."""
EVENTS = [
    *(("edit", version) for version in (None, *GOOD, *BAD, *ABSENT)),
    *((what, None) for what in ("add", "remove", "restart", "deliver", "deliver", "another key")),
]
SCRIPTS = st.lists(st.tuples(st.sampled_from(EVENTS), st.sampled_from([*range(1, 8), ALWAYS, ALWAYS])), max_size=20)


def test_a_proven_version_gets_its_traffic_before_its_list_arrives() -> None:
    world = World()
    for _ in range(2):
        world.add_pod()
    world.reconcile(ALWAYS)
    for version in GOOD:
        world.edit(version)
        world.reconcile(ALWAYS)
        world.deliver()
        world.reconcile(ALWAYS)
        assert [server.names for server in world.servers.values()] == [{"a": version}] * 2


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(SCRIPTS)
def test_no_server_ever_serves_what_was_not_proven_and_all_agree_in_the_end(
    script: list[tuple[tuple[str, str | None], int]],
) -> None:
    world = World()
    world.add_pod()
    for number, ((what, version), most_steps) in enumerate(script):
        names = sorted(world.pods)
        if what == "edit":
            world.edit(version)
        elif what == "add":
            world.add_pod()
        elif what == "remove" and len(names) > 1:
            del world.pods[names[0]], world.servers[names[0]]
        elif what == "restart":
            world.pods[names[-1]] = replace(world.pods[names[-1]], restarts=world.pods[names[-1]].restarts + 1)
            world.restart_server(names[-1])
        elif what == "deliver":
            world.deliver()
        elif what == "another key":
            world.settings = keyed(str(number + 1))
        world.reconcile(most_steps)
    for _ in range(8):
        world.deliver()
        world.reconcile(ALWAYS)
    adapters = world.service.status.adapters
    served = {adapters[0].served.source[-1]} if adapters and adapters[0].served else {None}
    assert {server.names.get("a") for server in world.servers.values()} == served

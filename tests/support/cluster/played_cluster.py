"""One InferenceService in a cluster that is small enough to play thousands of its lives.

The operator's decisions and the server's list of adapters are the real ones. Played are the API server, the kubelet, and what
servers have in memory. A pass takes the steps of `reconcile_inference_service`, and may end after any of them, as it does when
the operator crashes; nothing is remembered but what is in objects.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from hypothesis import strategies as st

from finetune_api.contract import ADAPTER_LIST_FILE
from finetune_api.reasons import Reason
from finetune_api.serving import AdapterList, PromotionRequest, ServedAdapter, ServingConfig
from finetune_api.v1alpha1 import AdapterReference, InferenceService, InferenceServiceStatus
from finetune_inference.adapters.promotion import ListedAdapters, WrongTokenError
from finetune_inference.adapters.registry import UnknownModelError
from finetune_operator.io.probe import ProbeResult, Served, not_loaded
from finetune_operator.reconcile.service.adapter_verdicts import Answers, ProbeRequest
from finetune_operator.reconcile.service.plan import ServiceObserved
from finetune_operator.reconcile.service.server_pod import ServerPod
from finetune_operator.resources import Manifest
from finetune_operator.resources.adapter_list import is_rolling
from finetune_operator.resources.annotations import ANNOTATION_ADAPTER_LIST, ANNOTATION_CONFIG
from finetune_operator.resources.serving import encoded_config
from finetune_operator.settings import Settings
from support.objects.decisions import ServiceDecision, decide_for
from support.objects.operator_objects import CREATED, FINGERPRINT, NOW, SETTINGS, a_service

GOOD, BAD, ABSENT = ("1", "2"), ("3",), ("4",)
"""Versions with the tuned weights, without effect, and without a folder."""
EDITS = [("edit", version) for version in (None, *GOOD, *BAD, *ABSENT)]
PASSES: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {
        "most_steps": st.sampled_from([*[None] * 22, *range(1, 12)]),
        "is_lossy": st.booleans(),
        "is_late": st.booleans(),
    }
)
"""How a pass goes, see `PlayedCluster.reconcile`."""


def an_adapter(version: str, **fingerprint: str) -> AdapterReference:
    proof = FINGERPRINT.model_copy(update=fingerprint)
    return AdapterReference(name="a", source=f"pvc://c/{version}", digest=digest_of(version), fingerprint=proof)


def digest_of(version: str) -> str:
    return f"sha256:{version * 64}"


class Server:
    """A server's process: its names, each with a version."""

    def __init__(self, config: str) -> None:
        self.names: dict[str, str] = {}
        self.refused: dict[str, str] = {}
        self._listed = ListedAdapters()
        self.read(ServingConfig.model_validate_json(config).adapters)

    def read(self, listed: list[ServedAdapter]) -> None:
        self._listed.update(listed)
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
        served = Served({name: digest_of(version) for name, version in self.names.items()}, self.refused)
        if not served.has(request.name, request.digest):
            return not_loaded(served, request.name)
        digest = served.digests[request.name]
        if self.names[request.name] in BAD:
            return ProbeResult("False", Reason.ADAPTER_HAS_NO_EFFECT, "like the base", digest=digest)
        return ProbeResult("True", Reason.FINGERPRINT_MATCHED, "0.001", digest=digest)

    def _apply(self) -> None:
        wanted = {entry.name: entry.path[-1] for entry in self._listed.wanted}
        self.refused = {name: version for name, version in wanted.items() if version in ABSENT}
        # A version that cannot be loaded leaves the one before it.
        kept = {name: version for name, version in self.names.items() if name in self.refused}
        self.names = {name: version for name, version in wanted.items() if name not in self.refused} | kept


@dataclass
class PlayedCluster:
    """Tests say what happens to it, and what is to be true after each step of the operator."""

    service: InferenceService = field(default_factory=lambda: a_service(adapterClaim="c"))
    settings: Settings = SETTINGS
    live: dict[str, Manifest] = field(default_factory=dict)
    pods: dict[str, ServerPod] = field(default_factory=dict)
    servers: dict[str, Server] = field(default_factory=dict)
    shown: set[tuple[str, int, str]] = field(default_factory=set)
    """Pod, restarts and version of each good answer that arrived."""
    started: int = 0
    probes: int = 0

    @property
    def in_traffic(self) -> list[Server]:
        return [self.servers[name] for name, pod in self.pods.items() if pod.is_ready]

    @property
    def version(self) -> str | None:
        """What is asked for."""
        adapters = self.service.spec.adapters
        return adapters[0].source[-1] if adapters else None

    @property
    def served(self) -> str | None:
        """What clients get, by the status."""
        adapters = self.service.status.adapters
        return adapters[0].served.source[-1] if adapters and adapters[0].served else None

    @property
    def is_verified(self) -> bool:
        """Whether the status says so of what is asked for now."""
        status = self.service.status
        is_current = status.observed_generation == self.service.metadata.generation
        return is_current and [adapter.verified for adapter in status.adapters] == ["True"]

    @property
    def template(self) -> str:
        """The configuration of new pods."""
        config: str = self.live["Deployment"]["spec"]["template"]["metadata"]["annotations"][ANNOTATION_CONFIG]
        return config

    def config_of(self, name: str) -> str:
        """That of a pod."""
        return self.pods[name].annotations[ANNOTATION_CONFIG]

    def edit(self, version: str | None, **fingerprint: str) -> None:
        adapters = [an_adapter(version, **fingerprint)] if version else []
        spec = self.service.spec.model_copy(update={"adapters": adapters})
        metadata = self.service.metadata.model_copy(update={"generation": self.service.metadata.generation + 1})
        self.service = self.service.model_copy(update={"spec": spec, "metadata": metadata})

    def add_pod(self, config: str | None = None) -> None:
        self.started += 1
        name, has_readiness_gate = f"s{self.started}", is_rolling(self.service)
        pod = ServerPod(
            name=name, uid=name, started_at=CREATED, has_readiness_gate=has_readiness_gate, are_containers_ready=True
        )
        notes = {ANNOTATION_CONFIG: config or encoded_config(self.service)}
        self.pods[name] = replace(pod, annotations=notes, is_ready=not has_readiness_gate)
        self._start_server(name)

    def remove_pod(self, name: str) -> None:
        del self.pods[name], self.servers[name]

    def restart(self, name: str) -> None:
        pod = self.pods[name]
        self.pods[name] = replace(pod, restarts=pod.restarts + 1, are_containers_ready=False, is_ready=False)
        self._start_server(name)

    def visit(self) -> None:
        """The kubelet comes: what was started is ready, and lists arrive."""
        for name, pod in self.pods.items():
            is_ready = pod.is_open or not pod.has_readiness_gate
            self.pods[name] = replace(pod, are_containers_ready=True, is_ready=is_ready)
            self._bring_list(name)

    def reconcile(self, most_steps: int | None = None, *, is_lossy: bool = False, is_late: bool = False) -> int:
        """One pass, ended by a crash after so many steps; how many there were.

        `is_lossy`: all answers but the first are lost. `is_late`: servers are asked before the kubelet has come.
        """
        steps = 0
        for _ in islice(self._steps(is_lossy, is_late), most_steps):
            steps += 1
            self.check()
        return steps

    def check(self) -> None:
        """Raise AssertionError unless it is as it should be at any moment."""
        if self.is_verified:
            assert self.served == self.version, "what is called verified is what clients get"
            assert {server.names.get("a") for server in self.in_traffic} <= {self.version}, "and they get nothing else"

    def _steps(self, is_lossy: bool, is_late: bool) -> Iterator[None]:
        plan = self._decide({})
        yield from self._act(plan)
        yield from self._report(plan)
        if not plan.probes:
            return
        if not is_late:
            self.visit()
        asked = plan.probes[:1] if is_lossy else plan.probes
        answers = {request.key: self._ask(request) for request in asked}
        self.probes += len(plan.probes)
        plan = self._decide(answers)
        if plan.apply:
            return
        yield from self._report(plan)
        if plan.is_switch:
            yield from self._act(self._decide({}))

    def seen(self) -> ServiceObserved:
        """What the operator observes."""
        live = self.live
        if "Deployment" in live:
            updated = sum(self.config_of(name) == self.template for name in self.pods)
            counts = {"replicas": len(self.pods), "updatedReplicas": updated, "readyReplicas": len(self.in_traffic)}
            live = {**live, "Deployment": {**live["Deployment"], "status": {"observedGeneration": 1, **counts}}}
        return ServiceObserved(live, tuple(self.pods.values()))

    def _decide(self, answers: Answers) -> ServiceDecision:
        seen = self.seen()
        plan = decide_for(self.service, seen, answers, NOW, self.settings)
        assert plan == decide_for(self.service, seen, answers, NOW, self.settings), "the same input, the same plan"
        return plan

    def _act(self, plan: ServiceDecision) -> Iterator[None]:
        assert not plan.delete
        for manifest in plan.apply:
            self.live[manifest["kind"]] = manifest
            yield
        for pod in plan.refresh:
            for request in plan.promote if pod.is_answering else ():
                self.servers[pod.name].promote(request)
                yield
            notes = {**pod.annotations, ANNOTATION_ADAPTER_LIST: plan.adapter_list}
            self.pods[pod.name] = replace(self.pods[pod.name], annotations=notes)
            yield

    def _report(self, plan: ServiceDecision) -> Iterator[None]:
        if plan.status != self.service.status:
            status = InferenceServiceStatus.model_validate(plan.status.to_dict())
            self.service = self.service.model_copy(update={"status": status})
            yield
        for gate in plan.gates:
            pod = replace(self.pods[gate.pod.name], verified_process=gate.pod.process if gate.is_open else None)
            self.pods[pod.name] = replace(pod, is_ready=pod.are_containers_ready and gate.is_open)
            yield

    def _ask(self, request: ProbeRequest) -> ProbeResult:
        server = self.servers[request.pod.name]
        answer = server.answer(request)
        if answer.verified == "True":
            self.shown.add((request.pod.name, request.pod.restarts, server.names[request.name]))
        return answer

    def _start_server(self, name: str) -> None:
        self.servers[name] = Server(self.config_of(name))
        self._bring_list(name)

    def _bring_list(self, name: str) -> None:
        """Pods of a Rolling service have none."""
        if "ConfigMap" in self.live and not self.pods[name].has_readiness_gate:
            text = self.live["ConfigMap"]["data"][ADAPTER_LIST_FILE]
            self.servers[name].read(AdapterList.model_validate_json(text).adapters)

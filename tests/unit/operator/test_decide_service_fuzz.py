"""Whatever happens to an endpoint, its name never means a version that some ready replica did not answer with.

Whole lives are played: the spec is edited, pods come, restart and go, some versions are bad, some answers are lost; and the
operator's memory is lost between any two passes (there is none: each pass reads everything).
"""

import json
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from operator_objects import CREATED, FINGERPRINT, NOW, SETTINGS, a_service

from finetune_api.constants import ANNOTATION_ADAPTER_LIST, ANNOTATION_CONFIG
from finetune_api.reasons import Reason
from finetune_api.v1alpha1 import InferenceService, InferenceServiceStatus
from finetune_operator.probe import ProbeResult
from finetune_operator.reconcile.adapter_verdicts import Answers
from finetune_operator.reconcile.decide_service import ServiceObserved, ServicePlan, decide_service
from finetune_operator.reconcile.views import PodView
from finetune_operator.resources import Manifest
from finetune_operator.resources.serving import encoded_config

GOOD, BAD, ABSENT = "good", "bad", "absent"
VERSIONS = {"1": GOOD, "2": GOOD, "3": BAD, "4": ABSENT}
"""What is in the folder of each version."""


def an_adapter(version: str) -> dict[str, Any]:
    return {
        "name": "a",
        "source": f"pvc://c/{version}",
        "digest": f"sha256:{version * 64}",
        "fingerprint": FINGERPRINT.to_dict(),
    }


@dataclass
class World:
    """A cluster that obeys plans."""

    service: InferenceService = field(default_factory=lambda: a_service(adapterClaim="c"))
    live: dict[str, Manifest] = field(default_factory=dict)
    pods: dict[str, PodView] = field(default_factory=dict)
    proven: set[tuple[str, int, str]] = field(default_factory=set)
    """Pod, restarts and version of each good answer."""
    started: int = 0
    writes: int = 0
    probes: int = 0

    def edit(self, version: str | None) -> None:
        adapters = [an_adapter(version)] if version else []
        edited = a_service(adapterClaim="c", adapters=adapters)
        generation = self.service.metadata.generation + 1
        metadata = edited.metadata.model_copy(update={"generation": generation})
        self.service = edited.model_copy(update={"metadata": metadata, "status": self.service.status})

    def add_pod(self) -> None:
        self.started += 1
        config = {ANNOTATION_CONFIG: encoded_config(self.service)}
        name = f"s{self.started}"
        self.pods[name] = PodView(name=name, uid=name, is_ready=True, started_at=CREATED, annotations=config)

    def restart(self, name: str) -> None:
        self.pods[name] = replace(self.pods[name], restarts=self.pods[name].restarts + 1)

    def step(self, lost: bool = False) -> None:
        """One pass, as `reconcile_inference_service` makes it; with `lost`, all answers but the first are lost."""
        before = self._meaning()
        plan = self._decide({})
        self._obey(plan)
        if plan.probes:
            self.probes += len(plan.probes)
            asked = plan.probes[:1] if lost else plan.probes
            answers = {request.key: self._answer(request.key) for request in asked}
            self._obey(self._decide(answers))
        after = self._meaning()
        for adapter, asked_for in zip(self.service.status.adapters, self.service.spec.adapters, strict=False):
            if adapter.verified == "True":
                assert adapter.served is not None
                assert adapter.served.digest == asked_for.digest, "what is called verified is what clients get"
        if after is not None and after != before:
            assert VERSIONS[after] == GOOD
            assert all((pod.name, pod.restarts, after) in self.proven for pod in self.pods.values())

    def _decide(self, answers: Answers) -> ServicePlan:
        seen = ServiceObserved(self._with_status(), tuple(self.pods.values()))
        plan = decide_service(self.service, seen, answers, NOW, SETTINGS)
        assert plan == decide_service(self.service, seen, answers, NOW, SETTINGS), "the same input gives the same plan"
        return plan

    def _obey(self, plan: ServicePlan) -> None:
        for manifest in plan.apply:
            self.live[manifest["kind"]] = manifest
            self.writes += 1
        for pod in plan.refresh:
            notes = {**pod.annotations, ANNOTATION_ADAPTER_LIST: plan.adapter_list}
            self.pods[pod.name] = replace(self.pods[pod.name], annotations=notes)
            self.writes += 1
        if plan.status != self.service.status:
            self.writes += 1
        reread = InferenceServiceStatus.model_validate(plan.status.to_dict())
        self.service = self.service.model_copy(update={"status": reread})

    def _answer(self, key: tuple[str, int, str]) -> ProbeResult:
        """What a server says that read the current list."""
        pod, restarts, name = key
        entry = next((e for e in self._list() if e["name"] == name), None)
        if entry is None:
            return ProbeResult("Unknown", Reason.LOADING, "not yet", loaded=False)
        version = entry["path"].rpartition("/")[2]
        if VERSIONS[version] == ABSENT:
            return ProbeResult("False", Reason.ADAPTER_INCOMPATIBLE, "no folder", loaded=False)
        if VERSIONS[version] == BAD:
            return ProbeResult("False", Reason.ADAPTER_HAS_NO_EFFECT, "like the base")
        self.proven.add((pod, restarts, version))
        return ProbeResult("True", Reason.FINGERPRINT_MATCHED, "0.001", digest=entry["digest"])

    def _list(self) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = json.loads(self.live["ConfigMap"]["data"]["adapters.json"])["adapters"]
        return entries

    def _meaning(self) -> str | None:
        """The version that clients get, by the status."""
        adapters = self.service.status.adapters
        return adapters[0].served.source[-1] if adapters and adapters[0].served else None

    def _with_status(self) -> dict[str, Manifest]:
        if "Deployment" not in self.live:
            return self.live
        count = len(self.pods)
        counts = {"observedGeneration": 1, "replicas": count, "updatedReplicas": count, "readyReplicas": count}
        return {**self.live, "Deployment": {**self.live["Deployment"], "status": counts}}


actions = st.sampled_from(
    [
        *(("edit", version) for version in (None, *VERSIONS)),
        *((what, None) for what in ("add", "remove", "restart", "pass")),
    ]
)
events = st.tuples(actions, st.booleans())
"""What happens, and whether answers are lost in the pass that follows."""


@settings(max_examples=150, deadline=timedelta(seconds=10), suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(events, max_size=14))
def test_a_name_never_means_what_was_not_proven_and_an_undisturbed_endpoint_costs_nothing(
    script: list[tuple[tuple[str, str | None], bool]],
) -> None:
    world = World()
    world.add_pod()
    for (what, version), is_lossy in script:
        names = sorted(world.pods)
        if what == "edit":
            world.edit(version)
        elif what == "add":
            world.add_pod()
        elif what == "remove" and len(names) > 1:
            del world.pods[names[0]]
        elif what == "restart":
            world.restart(names[-1])
        world.step(lost=is_lossy)
    for _ in range(6):
        world.step()
    writes, probes = world.writes, world.probes
    world.step()
    assert world.writes == writes, "settled means zero writes"
    adapters = world.service.spec.adapters
    if not adapters or VERSIONS[adapters[0].source[-1]] != ABSENT:
        assert world.probes == probes, "and nobody is asked again"
    if adapters and VERSIONS[adapters[0].source[-1]] == GOOD:
        assert world.service.status.adapters[0].verified == "True"
        assert [entry["name"] for entry in world._list()] == ["a"]

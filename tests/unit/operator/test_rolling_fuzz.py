"""Whatever happens to a Rolling service, no pod without effect gets traffic, and no change of the spec takes traffic from others.

Whole lives are played under a Deployment controller that obeys maxSurge 1 and maxUnavailable 0: the spec is edited, pods are
evicted and restart, some versions are bad, some answers are lost, and the operator crashes.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finetune_operator.resources.serving import config_hash, encoded_config
from support.cluster.played_cluster import ABSENT, EDITS, GOOD, PASSES, PlayedCluster, an_adapter
from support.objects.operator_objects import a_service

REPLICAS = 2


@dataclass
class RollingLife(PlayedCluster):
    """With its Deployment controller."""

    sizes: Counter[str] = field(default_factory=Counter)
    """Wanted pods by configuration: the ReplicaSets."""

    def check(self) -> None:
        super().check()
        for server in self.in_traffic:
            assert not server.refused, "what cannot be loaded gets no traffic"
            assert server.names.get("a") in {None, *GOOD}, "nor does what was disproven"

    def is_replaceable(self, name: str) -> bool:
        """Whether a pod's successor may be let in: a configuration between two edits, never proven on all pods, is not noted."""
        config = self.config_of(name)
        return config == self.template or config_hash(config) == self.service.status.proven_config

    def step(self, **how: Any) -> int:
        """One pass, then what the kubelet and the controllers of Deployment and ReplicaSets do before the next."""
        steps = self.reconcile(**how)
        self.visit()
        self._roll()
        return steps

    def _roll(self) -> None:
        new = self.template
        if self.sizes[new] < REPLICAS and self.sizes.total() <= REPLICAS:
            self.sizes[new] += 1
        available = sum(pod.is_ready and self.config_of(name) == new for name, pod in self.pods.items())
        removable = self.sizes.total() - REPLICAS - (self.sizes[new] - available)
        for config in self.sizes:
            names = [name for name in self.pods if self.config_of(name) == config]
            names.sort(key=lambda name: self.pods[name].is_ready)
            while config != new and names:
                if not (len(self.in_traffic) > REPLICAS if self.pods[names[0]].is_ready else removable > 0):
                    break
                self.sizes[config] -= 1
                removable -= 1
                self.remove_pod(names.pop(0))
            for name in names[self.sizes[config] :]:
                self.remove_pod(name)
            for _ in range(self.sizes[config] - len(names)):
                self.add_pod(config)


EVENTS = [*EDITS, *((what, None) for what in ("prove otherwise", "evict", "restart", "pass", "pass", "pass"))]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.sampled_from(EVENTS), PASSES), max_size=16))
def test_what_is_disproven_gets_no_traffic_and_an_edit_takes_none_away(
    script: list[tuple[tuple[str, str | None], dict[str, Any]]],
) -> None:
    spec = {"adapters": [an_adapter("1")], "replicas": REPLICAS, "rollout": {"mode": "Rolling"}}
    world = RollingLife(a_service(adapterClaim="c", **spec))
    for _ in range(4):
        world.step()
    assert len(world.in_traffic) == REPLICAS
    for number, ((what, version), how) in enumerate(script):
        names = sorted(world.pods)
        if what == "edit":
            world.edit(version)
        elif what == "prove otherwise" and world.version is not None:
            world.edit(world.version, chat=f"message {number}")
        elif what == "evict" and (replaceable := [name for name in names if world.is_replaceable(name)]):
            world.remove_pod(replaceable[0])
        elif what == "restart":
            world.restart(names[-1])
        answering = len(world.in_traffic)
        world.step(**how)
        assert len(world.in_traffic) >= answering, "only evictions and restarts take pods out of traffic"
        for _ in range(4 if what in ("evict", "restart") else 0):
            # An edit at this moment would cost the old version a pod: the Deployment controller takes the idle ones first.
            world.step()
    for _ in range(12):
        world.step()
    probes = world.probes
    assert world.step() == 0, "settled means zero writes"
    assert len(world.in_traffic) >= REPLICAS, "the version before serves on, evicted or not"
    if world.version not in ABSENT:
        assert world.probes == probes, "and nobody is asked again"
    if world.version is None or world.version in GOOD:
        assert {world.config_of(name) for name in world.pods} == {encoded_config(world.service)}
        assert all(adapter.verified == "True" for adapter in world.service.status.adapters)

"""Operator and servers through whole lives of a Hot service: a slow kubelet, crashes, lost answers, other keys, pods that go.

Whatever happens, no server lets clients have a version that was not shown to work by all that were ready; and once nothing
happens any more, all servers agree, and it costs nothing.
"""

from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from support.cluster.played_cluster import ABSENT, EDITS, GOOD, PASSES, PlayedCluster


@dataclass
class HotLife(PlayedCluster):
    """What its clients may get."""

    meaning: str | None = None
    """The version that the status named as served after the step before."""
    proven: set[str] = field(default_factory=set)
    """Those that it ever named."""

    def set_key(self, key: str | None) -> None:
        self.settings = self.settings.model_copy(update={"promotion_key": SecretStr(key) if key else None})

    def check(self) -> None:
        super().check()
        if self.served not in (None, self.meaning):
            assert self.served in GOOD
            ready = [(name, pod.restarts, self.served) for name, pod in self.pods.items() if pod.is_answering]
            assert self.shown.issuperset(ready), "every server that is ready was shown to have it"
            self.proven.add(self.served)
        self.meaning = self.served
        for server in self.servers.values():
            assert server.names.get("a") in {None, *self.proven}, "clients get what was proven, or nothing"


def test_a_proven_version_gets_its_traffic_before_its_list_arrives() -> None:
    world = HotLife()
    world.set_key("0")
    for _ in range(2):
        world.add_pod()
    world.reconcile()
    for version in GOOD:
        world.edit(version)
        world.reconcile(is_late=True)
        world.visit()
        world.reconcile(is_late=True)
        assert [server.names for server in world.servers.values()] == [{"a": version}] * 2


EVENTS = [
    *EDITS,
    *(("key", key) for key in (None, "0", "1")),
    *((what, None) for what in ("add", "remove", "restart", "visit", "visit", "pass")),
]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.sampled_from(EVENTS), PASSES), max_size=20))
def test_clients_get_only_what_was_proven_and_in_the_end_all_servers_agree_and_nothing_is_written(
    script: list[tuple[tuple[str, str | None], dict[str, Any]]],
) -> None:
    world = HotLife()
    world.set_key("0")
    world.add_pod()
    for (what, value), how in script:
        names = sorted(world.pods)
        if what == "edit":
            world.edit(value)
        elif what == "key":
            world.set_key(value)
        elif what == "add":
            world.add_pod()
        elif what == "remove" and len(names) > 1:
            world.remove_pod(names[0])
        elif what == "restart":
            world.restart(names[-1])
        elif what == "visit":
            world.visit()
        world.reconcile(**how)
    for _ in range(8):
        world.visit()
        world.reconcile()
    assert {server.names.get("a") for server in world.servers.values()} == {world.served}
    probes = world.probes
    assert world.reconcile() == 0, "settled means zero writes"
    if world.version not in ABSENT:
        assert world.probes == probes, "and nobody is asked again"
    if world.version in GOOD:
        assert world.is_verified
        assert all(server.names == {"a": world.version} for server in world.servers.values()), (
            "and no candidate is left"
        )

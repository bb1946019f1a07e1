"""A proxy between operator and API server that answers some requests itself ends nothing and loses no job."""

import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.cluster.api import wait_for
from support.cluster.fault_proxy import FAULTS, HTML, Fault, FaultProxy, healthy
from support.cluster.kubelet_actor import succeeding
from support.cluster.operator_process import OperatorProcess
from support.cluster.world import OPERATOR_USER, World

JOBS = 20
"""Jobs per test; each takes about seven requests."""


@pytest.fixture
def proxy(world: World, tmp_path: Path) -> Iterator[FaultProxy]:
    with FaultProxy(world.plane, OPERATOR_USER, tmp_path).running() as proxy:
        yield proxy


@pytest.fixture
def behind(world: World, proxy: FaultProxy, tmp_path: Path) -> Iterator[OperatorProcess]:
    """The operator behind the proxy, alone, in the test's namespace."""
    assert world.operator.stop() == 0
    process = OperatorProcess(
        proxy.kubeconfig,
        tmp_path / "operator.log",
        namespaces=world.namespace,
        resync_seconds="2",
        retry_seconds="0.5",
    )
    process.start()
    yield process
    try:
        assert process.stop() == 0
    finally:
        world.operator.start()


def submit_all(world: World) -> list[str]:
    world.kubelet.script(world.namespace, *(succeeding() for _ in range(JOBS)))
    names = [f"j{number}" for number in range(JOBS)]
    for name in names:
        world.submit(name)
    return names


def check(world: World, behind: OperatorProcess, names: list[str], pid: int) -> None:
    wait_for(
        "all jobs to succeed", lambda: all(world.status(name).get("phase") == "Succeeded" for name in names), 60, 0.3
    )
    assert behind.process is not None
    assert (behind.is_alive, behind.process.pid) == (True, pid)
    assert len(world.jobs()) == len(world.pods()) == JOBS, "one trainer per job"
    assert {world.status(name)["attempt"] for name in names} == {1}


def test_replies_that_no_api_server_gives_lose_no_job(world: World, proxy: FaultProxy, behind: OperatorProcess) -> None:
    assert behind.process is not None
    chance = random.Random(17)  # noqa: S311 - the same faults in each run

    def one_in_four(method: str, path: str, number: int) -> Fault | None:
        return chance.choice(FAULTS) if chance.random() < 0.25 else None

    proxy.plan = one_in_four
    names = submit_all(world)
    time.sleep(10)
    proxy.cut_watches()
    proxy.send_to_watches(HTML)
    time.sleep(2)
    proxy.plan = healthy
    check(world, behind, names, behind.process.pid)
    assert len(proxy.played) == len(FAULTS), f"only {dict(proxy.played)} were played"
    metrics = behind.read("/metrics")
    counted = [line for line in metrics.splitlines() if line.startswith("finetune_operator_malformed_replies_total")]
    assert sum(float(line.split()[-1]) for line in counted) > 0
    assert "is there a proxy between the operator and the API server?" in behind.log.read_text()


def test_a_proxy_that_answers_everything_itself_is_an_outage(
    world: World, proxy: FaultProxy, behind: OperatorProcess
) -> None:
    assert behind.process is not None
    proxy.plan = lambda method, path, number: FAULTS[0]
    proxy.cut_watches()
    names = submit_all(world)
    wait_for("the operator to notice", lambda: not behind.answers("/readyz"))
    assert behind.answers("/healthz")
    time.sleep(5)
    proxy.plan = healthy
    check(world, behind, names, behind.process.pid)

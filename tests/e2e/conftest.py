"""End-to-end tests need the local cluster with the chart on it (`make demo` leaves both), and say so if it is not there."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.cluster.api import Raw
from support.cluster.local_kubernetes import DEMO_NAMESPACE, LocalKubernetes


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in Path(item.path).parents:
            item.add_marker(pytest.mark.e2e)
            item.add_marker(pytest.mark.timeout(600))


@pytest.fixture(scope="session")
def kubernetes() -> Iterator[LocalKubernetes]:
    kubernetes = LocalKubernetes()
    if missing := kubernetes.missing:
        pytest.skip(missing)
    kubernetes.provide_models()
    yield kubernetes
    kubernetes.remove_models()


@pytest.fixture(scope="session")
def demo_job(kubernetes: LocalKubernetes) -> Raw:
    job = kubernetes.api.get("finetunejobs", DEMO_NAMESPACE, "support-tickets")
    if not job or job.get("status", {}).get("phase") != "Succeeded":
        pytest.skip("there is no finished job of the demonstration; run `make demo`")
    return job

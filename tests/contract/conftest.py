"""One control plane for all contract tests that need one; it starts only for them."""

from collections.abc import Iterator

import pytest

from lab.kubernetes.controlplane import ControlPlane
from support.cluster.api import Api
from support.cluster.chart import NAMESPACE
from support.cluster.chart_cluster import a_namespace


@pytest.fixture(scope="session")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    with ControlPlane(tmp_path_factory.mktemp("contract"), controllers=True) as plane:
        yield plane


@pytest.fixture(scope="session")
def api(plane: ControlPlane) -> Api:
    api = Api(plane.admin)
    for namespace in (NAMESPACE, "team-a", "team-b", "team-c"):
        a_namespace(api, namespace)
    return api

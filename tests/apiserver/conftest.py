"""A real API server with its controllers, a played kubelet, and the real operator with exactly the rights it declares."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from finetune_operator.permissions import rules
from lab.kubernetes.binaries import CONTROL_PLANE_BINARIES, binary_path
from lab.kubernetes.controlplane import ControlPlane
from support.cluster.api import Api, Raw, wait_for
from support.cluster.fake_endpoint import Adapters, FakeEndpoint
from support.cluster.kubelet_actor import KubeletActor
from support.cluster.operator_process import OperatorProcess
from support.cluster.world import OPERATOR_USER, REPOSITORY, World
from support.objects.factories import a_claim


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    missing = [name for name in CONTROL_PLANE_BINARIES if not binary_path(name).exists()]
    for item in items:
        if Path(__file__).parent not in Path(item.path).parents:
            continue
        item.add_marker(pytest.mark.apiserver)
        if missing:
            item.add_marker(pytest.mark.skip(reason=f"{', '.join(missing)} not built; run `make binaries`"))


@pytest.fixture(scope="session")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    with ControlPlane(tmp_path_factory.mktemp("plane"), controllers=True, audit_reads=True) as plane:
        yield plane


@pytest.fixture(scope="session")
def api(plane: ControlPlane) -> Api:
    api = Api(plane.admin)
    for file in sorted((REPOSITORY / "crds").glob("*.yaml")):
        install_crd(api, yaml.safe_load(file.read_text()))
    return api


def install_crd(api: Api, crd: Raw) -> None:
    root = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    api.client.post(root, crd)

    def is_established() -> bool:
        conditions = api.client.get(f"{root}/{crd['metadata']['name']}")["status"].get("conditions") or []
        return any(c["type"] == "Established" and c["status"] == "True" for c in conditions)

    wait_for(f"{crd['metadata']['name']} to be established", is_established)


@pytest.fixture(scope="session")
def kubelet(api: Api) -> Iterator[KubeletActor]:
    with KubeletActor(api).running() as actor:
        yield actor


@pytest.fixture(scope="session")
def endpoint(api: Api) -> Iterator[FakeEndpoint]:
    def listed(namespace: str, pod: str) -> Adapters:
        """What the kubelet would have put into the pod's volumes: its own adapters, or the list that others read."""
        raw = api.get("pods", namespace, pod) or {"spec": {}}
        if raw["spec"].get("readinessGates"):
            adapters: Adapters = json.loads(raw["metadata"]["annotations"]["finetune.dev/config"])["adapters"]
            return adapters
        lists = api.list("configmaps", namespace, selector="app.kubernetes.io/managed-by=finetune-operator")
        return [entry for found in lists for entry in json.loads(found["data"]["adapters.json"])["adapters"]]

    with FakeEndpoint(listed) as endpoint:
        yield endpoint


@pytest.fixture(scope="session")
def operator_kubeconfig(plane: ControlPlane, api: Api) -> Path:
    """A user with exactly the rights of permissions.py, so that a missing verb fails these tests."""
    role = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": OPERATOR_USER}}
    role["rules"] = [
        {"apiGroups": [rule.group], "resources": [rule.resource], "verbs": list(rule.verbs)} for rule in rules()
    ]
    api.client.post("/apis/rbac.authorization.k8s.io/v1/clusterroles", role)
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": OPERATOR_USER}
    subject = {"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": OPERATOR_USER}
    binding = {**role, "kind": "ClusterRoleBinding", "roleRef": reference, "subjects": [subject]}
    binding.pop("rules")
    api.client.post("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", binding)
    return plane.client_kubeconfig(OPERATOR_USER)


@pytest.fixture(scope="session")
def operator(
    operator_kubeconfig: Path, kubelet: KubeletActor, endpoint: FakeEndpoint, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OperatorProcess]:
    process = OperatorProcess(
        operator_kubeconfig,
        tmp_path_factory.mktemp("operator") / "operator.log",
        server_url_template=f"{endpoint.url}/{{namespace}}/{{pod}}",
        resync_seconds="5",
        retry_seconds="0.5",
        probe_retry_seconds="0.5",
    )
    process.start()
    yield process
    if process.is_alive:
        assert process.stop() == 0


_counter = itertools.count(1)


@pytest.fixture
def world(
    plane: ControlPlane, api: Api, kubelet: KubeletActor, operator: OperatorProcess, endpoint: FakeEndpoint
) -> World:
    namespace = f"test-{next(_counter)}"
    api.create("namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
    wait_for("the service account", lambda: api.get("serviceaccounts", namespace, "default"))
    api.create("persistentvolumeclaims", a_claim("models", namespace))
    assert kubelet.is_alive, "the played kubelet has ended: nothing would run in this test"
    if not operator.is_alive:
        operator.start()
    return World(namespace, api, kubelet, operator, endpoint, plane)

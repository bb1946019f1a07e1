"""Other ways to run the operator: confined to one namespace with a service account's token, and twice at once."""

import json
import time
from pathlib import Path

from finetune_api.reasons import Reason
from finetune_operator.permissions import rules
from support.cluster.api import Raw, wait_for
from support.cluster.kubelet_actor import failing, succeeding
from support.cluster.operator_process import OperatorProcess
from support.cluster.world import World

RBAC = "/apis/rbac.authorization.k8s.io/v1"


def test_an_operator_confined_to_a_namespace_needs_rights_there_only(world: World, tmp_path: Path) -> None:
    kubeconfig = confined_kubeconfig(world)
    world.operator.stop()
    confined = OperatorProcess(kubeconfig, tmp_path / "operator.log", namespaces=world.namespace)
    confined.start()
    try:
        world.kubelet.script(world.namespace, succeeding())
        world.submit()
        world.wait_for_phase("Succeeded")
        user = f"system:serviceaccount:{world.namespace}:operator"
        events = [e for e in world.plane.audit_events() if e["user"].get("username") == user]
        assert [e["requestURI"] for e in events if e.get("responseStatus", {}).get("code") == 403] == []
        assert {e["objectRef"].get("namespace") for e in events if "objectRef" in e} <= {world.namespace}
    finally:
        assert confined.stop() == 0
        world.operator.start()


def confined_kubeconfig(world: World) -> Path:
    """A service account with the declared rights in its namespace, and its token."""
    api, namespace = world.api, world.namespace
    metadata: Raw = {"name": "operator", "namespace": namespace}
    api.create("serviceaccounts", {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata})
    group = "rbac.authorization.k8s.io"
    role = {"apiVersion": f"{group}/v1", "kind": "Role", "metadata": metadata}
    granted = [{"apiGroups": [r.group], "resources": [r.resource], "verbs": list(r.verbs)} for r in rules()]
    api.client.post(f"{RBAC}/namespaces/{namespace}/roles", {**role, "rules": granted})
    binding = {**role, "kind": "RoleBinding", "roleRef": {"apiGroup": group, "kind": "Role", "name": "operator"}}
    subjects = [{"kind": "ServiceAccount", "name": "operator", "namespace": namespace}]
    api.client.post(f"{RBAC}/namespaces/{namespace}/rolebindings", {**binding, "subjects": subjects})
    return world.plane.token_kubeconfig(namespace, "operator")


def test_two_operators_at_once_make_one_trainer_at_a_time(
    world: World, operator_kubeconfig: Path, tmp_path: Path
) -> None:
    twin = OperatorProcess(operator_kubeconfig, tmp_path / "operator.log", resync_seconds="1", retry_seconds="0.5")
    twin.start()
    try:
        for number in range(6):
            boom = failing(Reason.LOSS_DIVERGED, retryable=True)
            world.kubelet.script(world.namespace, boom)
            world.submit(f"tone-{number}", policy={"maxAttempts": 3})
            wait_for("the first attempt", lambda n=number: world.status(f"tone-{n}").get("failedAttempts") == 1)
            world.kubelet.script(world.namespace, succeeding())
            status = world.wait_for_phase("Succeeded", name=f"tone-{number}")
            assert (status["attempt"], status["failedAttempts"]) == (2, 1)
        time.sleep(2)
        assert len(world.jobs()) == len(world.pods()) == 12
    finally:
        assert twin.stop() == 0


def test_a_token_that_is_replaced_on_disk_is_picked_up_by_the_same_process(world: World, tmp_path: Path) -> None:
    kubeconfig = confined_kubeconfig(world)
    good = kubeconfig.read_text()
    token = json.loads(good)["users"][0]["user"]["token"]
    own = tmp_path / "kubeconfig"
    own.write_text(good.replace(token, "expired"))
    operator = OperatorProcess(own, tmp_path / "operator.log", namespaces=world.namespace)
    operator.start(wait=False)
    try:
        wait_for("the watch to be refused", lambda: "watch is repeated" in operator.log.read_text())
        assert operator.is_alive
        own.write_text(good)
        wait_for("the operator to be ready", lambda: operator.answers("/readyz"), 20)
        assert "expired" not in operator.log.read_text()
    finally:
        assert operator.stop() == 0

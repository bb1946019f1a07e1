"""The real gateway in front of a real API server, and people with real tokens and different rights."""

from collections.abc import Iterator

import httpx
import pytest

from lab.kubernetes.controlplane import ControlPlane
from support.cluster.api import Api, wait_for
from support.cluster.people import EVERYTHING, OTHER, TEAM, People, Person, grant
from support.gateway.running_gateway import running_gateway


@pytest.fixture(scope="session")
def gateway(plane: ControlPlane, api: Api) -> Iterator[httpx.Client]:
    with running_gateway(plane.url, plane.ca_file) as client:
        yield client


@pytest.fixture(scope="session")
def people(plane: ControlPlane, api: Api, gateway: httpx.Client) -> People:
    for namespace in (TEAM, OTHER):
        api.create("namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
        wait_for("the service account", lambda n=namespace: api.get("serviceaccounts", n, "default"))

    def person(name: str, namespace: str, verbs: list[str]) -> Person:
        metadata = {"name": name, "namespace": namespace}
        api.create("serviceaccounts", {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata})
        if verbs:
            grant(
                api, name, namespace, [{"apiGroups": ["finetune.dev"], "resources": ["finetunejobs"], "verbs": verbs}]
            )
        return Person(gateway, plane.service_account_token(namespace, name))

    return People(
        ann=person("ann", TEAM, EVERYTHING),
        vic=person("vic", TEAM, ["get", "list"]),
        eve=person("eve", OTHER, EVERYTHING),
        gateway=person("finetune-gateway", OTHER, []),
        stranger=Person(gateway, "eyJhbGciOiJSUzI1NiJ9.e30.AAAA"),
    )

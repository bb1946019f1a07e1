"""People with real tokens and different rights, at the gateway; and what they send."""

from dataclasses import dataclass
from typing import Final

import httpx

from support.cluster.api import Api, Raw
from support.objects.factories import a_finetune_job

TEAM: Final = "gateway-team"
OTHER: Final = "gateway-other"
RBAC: Final = "/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/{plural}"
EVERYTHING: Final = ["get", "list", "create", "patch"]


@dataclass(frozen=True)
class Person:
    """Somebody with a token, at the gateway."""

    client: httpx.Client
    token: str

    def call(self, method: str, path: str = "", **options: object) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.token}"} | dict(options.pop("headers", {}))  # type: ignore[call-overload]
        return self.client.request(method, f"/llm/finetune{path}", headers=headers, **options)  # type: ignore[arg-type]


@dataclass(frozen=True)
class People:
    """Everybody whom the tests know."""

    ann: Person
    """May do everything with FinetuneJobs in TEAM."""
    vic: Person
    """May only look in TEAM."""
    eve: Person
    """May do everything in OTHER, nothing in TEAM."""
    gateway: Person
    """The account of the gateway itself: no rights anywhere."""
    stranger: Person
    """Has a token that this API server never made."""


def grant(api: Api, account: str, namespace: str, rules: list[Raw]) -> None:
    """A Role of the account's name, bound to the account."""
    metadata = {"name": account, "namespace": namespace}
    root = "rbac.authorization.k8s.io"
    role = {"apiVersion": f"{root}/v1", "kind": "Role", "metadata": metadata, "rules": rules}
    api.client.post(RBAC.format(namespace=namespace, plural="roles"), role)
    binding = {
        "apiVersion": f"{root}/v1",
        "kind": "RoleBinding",
        "metadata": metadata,
        "roleRef": {"apiGroup": root, "kind": "Role", "name": account},
        "subjects": [{"kind": "ServiceAccount", **metadata}],
    }
    api.client.post(RBAC.format(namespace=namespace, plural="rolebindings"), binding)


def a_body(**fields: object) -> Raw:
    """A valid request."""
    spec: Raw = a_finetune_job()["spec"]
    return spec | fields

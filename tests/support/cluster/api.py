"""A small synchronous client of the API server for tests: the local cluster's own, plus patches and waiting."""

import time
from collections.abc import Callable
from typing import Any, TypeVar

from lab.kubernetes.api import ApiClient, ApiError

Raw = dict[str, Any]
T = TypeVar("T")

GROUP_PATH = "/apis/finetune.dev/v1alpha1"
ROOTS = {
    "finetunejobs": GROUP_PATH,
    "inferenceservices": GROUP_PATH,
    "jobs": "/apis/batch/v1",
    "deployments": "/apis/apps/v1",
    "replicasets": "/apis/apps/v1",
    "poddisruptionbudgets": "/apis/policy/v1",
    "horizontalpodautoscalers": "/apis/autoscaling/v2",
    "events": "/apis/events.k8s.io/v1",
    "leases": "/apis/coordination.k8s.io/v1",
}
"""API roots by plural; everything else is in the core group."""

MERGE_PATCH = "application/merge-patch+json"
STRATEGIC_PATCH = "application/strategic-merge-patch+json"
"""Merges lists of Kubernetes' own kinds by their keys, as a kubelet does with a pod's conditions."""


class Api:
    """Verbs by plural, namespace and name."""

    def __init__(self, client: ApiClient) -> None:
        self.client = client

    def path(self, plural: str, namespace: str | None, name: str = "", subresource: str = "") -> str:
        parts = [ROOTS.get(plural, "/api/v1")]
        if namespace:
            parts += ["namespaces", namespace]
        return "/".join([*parts, plural, *filter(None, (name, subresource))])

    def get(self, plural: str, namespace: str | None, name: str) -> Raw | None:
        try:
            return self.client.get(self.path(plural, namespace, name))
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    def list(self, plural: str, namespace: str | None = None, selector: str = "") -> list[Raw]:
        query = f"?labelSelector={selector}" if selector else ""
        return self.client.list(self.path(plural, namespace) + query)

    def create(self, plural: str, manifest: Raw) -> Raw:
        return self.client.post(self.path(plural, manifest["metadata"].get("namespace")), manifest)

    def patch(
        self, plural: str, namespace: str | None, name: str, body: Raw, subresource: str = "", how: str = MERGE_PATCH
    ) -> Raw:
        path = self.path(plural, namespace, name, subresource)
        return self.client._call("PATCH", path, body, content_type=how)

    def delete(self, plural: str, namespace: str | None, name: str, **options: Any) -> None:
        body = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background", **options}
        try:
            self.client._call("DELETE", self.path(plural, namespace, name), body)
        except ApiError as error:
            if error.status != 404:
                raise


def wait_for(what: str, check: Callable[[], T], seconds: float = 30.0, pause: float = 0.05) -> T:
    """The first true answer of `check`; an AssertionError that says what was waited for."""
    deadline = time.monotonic() + seconds
    while not (answer := check()):
        assert time.monotonic() < deadline, f"waited {seconds:g} s for {what}"
        time.sleep(pause)
    return answer

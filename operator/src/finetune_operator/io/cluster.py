"""Client of the API server: a few verbs with plain dicts, over the connection that `io.connection` keeps.

Plain dicts because our own kinds have no generated models, and so that requests look like the golden files. Every
failure is a ClusterError; "not found" on a read is None.
"""

import random
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Final, Self
from urllib.parse import quote, urlencode

from finetune_api.contract import (
    FINETUNE_JOB_KIND,
    FINETUNE_JOB_PLURAL,
    GROUP,
    INFERENCE_SERVICE_KIND,
    INFERENCE_SERVICE_PLURAL,
    VERSION,
)
from finetune_operator.errors import ClusterError
from finetune_operator.io.connection import Call, Connection
from finetune_operator.io.replies import (
    Change,
    Page,
    Request,
    is_identified,
    read_change,
    read_error,
    read_object,
    read_page,
)
from finetune_operator.kubernetes_types import Raw

FIELD_MANAGER: Final = "finetune-operator"
"""Field manager of the operator's server-side applies."""
PAGE_SIZE: Final = 500
"""Objects per page of a LIST, so that thousands of jobs do not make one huge answer."""
WATCH_SECONDS: Final = 300
"""Shortest duration of a watch in seconds, at most doubled; then it is begun anew where it ended."""


@dataclass(frozen=True)
class Resource:
    """Resource of the API: group, version, plural, and the kind of its objects."""

    group: str
    version: str
    plural: str
    kind: str

    @property
    def root(self) -> str:
        """Path of the API group."""
        return f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"


FINETUNE_JOBS: Final = Resource(GROUP, VERSION, FINETUNE_JOB_PLURAL, FINETUNE_JOB_KIND)
INFERENCE_SERVICES: Final = Resource(GROUP, VERSION, INFERENCE_SERVICE_PLURAL, INFERENCE_SERVICE_KIND)
JOBS: Final = Resource("batch", "v1", "jobs", "Job")
PODS: Final = Resource("", "v1", "pods", "Pod")
DEPLOYMENTS: Final = Resource("apps", "v1", "deployments", "Deployment")
SERVICES: Final = Resource("", "v1", "services", "Service")
BUDGETS: Final = Resource("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget")
AUTOSCALERS: Final = Resource("autoscaling", "v2", "horizontalpodautoscalers", "HorizontalPodAutoscaler")
CONFIG_MAPS: Final = Resource("", "v1", "configmaps", "ConfigMap")
CLAIMS: Final = Resource("", "v1", "persistentvolumeclaims", "PersistentVolumeClaim")
EVENTS: Final = Resource("events.k8s.io", "v1", "events", "Event")

BY_KIND: Final[Mapping[str, Resource]] = {
    resource.kind: resource
    for resource in (INFERENCE_SERVICES, JOBS, DEPLOYMENTS, SERVICES, BUDGETS, AUTOSCALERS, CONFIG_MAPS, CLAIMS)
}
"""Resource by kind of manifest. Knative and KServe have kinds of the same names; the operator creates only those here."""


class Cluster:
    """Client of the API server. Use it as an async context manager."""

    def __init__(self, kubeconfig: str | None = None) -> None:
        self._connection = Connection(kubeconfig)
        self.on_written: Callable[[Resource, Raw, bool], None] | None = None
        """Called with the object in the reply to each write, and whether it was a write of the status."""

    async def __aenter__(self) -> Self:
        await self._connection.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._connection.close()

    async def get(self, resource: Resource, namespace: str, name: str) -> Raw | None:
        """Get one object; None if it does not exist."""
        return await self._request("get", resource, namespace, name, may_miss=True)

    async def list(self, resource: Resource, namespace: str | None, selector: str = "") -> list[Raw]:
        """List all objects that match a label selector, in one namespace or in all."""
        return [item async for page in self.pages(resource, namespace, selector) for item in page.items]

    async def pages(self, resource: Resource, namespace: str | None, selector: str = "") -> AsyncIterator[Page]:
        """Yield the pages of a LIST of the newest state."""
        query = {"limit": str(PAGE_SIZE), **({"labelSelector": selector} if selector else {})}
        while True:
            page = await self._page(resource, namespace, query)
            yield page
            if not page.following:
                return
            query["continue"] = page.following

    async def events(
        self, resource: Resource, namespace: str | None, selector: str, version: str
    ) -> AsyncIterator[Change | None]:
        """Yield the changes after `version` until the API server ends the watch; first None, once it has begun.

        Raises ClusterError if it cannot begin, breaks, or reports an error.
        """
        query = {"watch": "true", "resourceVersion": version, "allowWatchBookmarks": "true"}
        query["timeoutSeconds"] = str(WATCH_SECONDS + random.randrange(WATCH_SECONDS))  # noqa: S311 - spreads watches
        if selector:
            query["labelSelector"] = selector
        request = _request_of("watch", resource, namespace)
        async with self._connection.stream(request, _path("watch", resource, namespace, "", query)) as (status, lines):
            if status >= 300:
                async for line in lines:
                    raise read_error(request, status, line)
                raise read_error(request, status, b"")
            yield None
            async for line in lines:
                change = read_change(request, line, resource.kind)
                if change is not None:
                    yield change

    async def create(self, manifest: Raw) -> Raw | None:
        """Create an object; None if one of that name exists already."""
        resource, metadata = BY_KIND[manifest["kind"]], manifest["metadata"]
        try:
            query = {"fieldManager": FIELD_MANAGER}
            return await self._request(
                "create", resource, metadata["namespace"], metadata["name"], body=manifest, query=query
            )
        except ClusterError as error:
            if error.is_conflict:
                return None
            raise

    async def apply(self, manifest: Raw, manager: str = FIELD_MANAGER) -> Raw:
        """Apply a manifest on the server: create the object, or take over the fields that the manifest names.

        Fields that the same `manager` applied earlier and no longer names are removed.
        """
        resource, metadata = BY_KIND[manifest["kind"]], manifest["metadata"]
        query = {"fieldManager": manager, "force": "true"}
        done = await self._request(
            "apply", resource, metadata["namespace"], metadata["name"], body=manifest, query=query
        )
        return done or {}

    async def patch_status(self, resource: Resource, metadata: Raw, status: Raw) -> bool:
        """Merge a status. False if the object is gone; a ClusterError with `is_conflict` if it has changed meanwhile.

        uid and resourceVersion are preconditions, so that a status computed from an older object is never written.
        """
        name, namespace = metadata["name"], metadata["namespace"]
        precondition = {"uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"]}
        body = {"metadata": precondition, "status": status}
        done = await self._request("patch status of", resource, namespace, name, body=body, may_miss=True)
        return done is not None

    async def annotate(
        self, resource: Resource, namespace: str, name: str, uid: str, annotations: Mapping[str, str]
    ) -> None:
        """Set annotations of the object with this uid. Does nothing if it is gone."""
        body = {"metadata": {"uid": uid, "annotations": dict(annotations)}}
        try:
            await self._request("annotate", resource, namespace, name, body=body, may_miss=True)
        except ClusterError as error:
            # Conflict: another object has the name by now, so ours is gone.
            if not error.is_conflict:
                raise

    async def patch_condition(
        self, resource: Resource, namespace: str, name: str, uid: str, resource_version: str, condition: Raw
    ) -> None:
        """Set one condition of the object as it was read. Does nothing if the object has changed or is gone.

        A strategic merge keeps the other conditions; only Kubernetes' own kinds support it.
        """
        body = {"metadata": {"uid": uid, "resourceVersion": resource_version}, "status": {"conditions": [condition]}}
        try:
            await self._request("patch condition of", resource, namespace, name, body=body, may_miss=True)
        except ClusterError as error:
            # Conflict: the change that caused it triggers another reconcile.
            if not error.is_conflict:
                raise

    async def delete(self, resource: Resource, namespace: str, name: str, uid: str) -> None:
        """Delete the object with this uid and, in the background, its children. Does nothing if it is gone."""
        body = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "propagationPolicy": "Background",
            "preconditions": {"uid": uid},
        }
        try:
            await self._request("delete", resource, namespace, name, body=body, may_miss=True)
        except ClusterError as error:
            # Conflict: another object has the name by now, so ours is gone.
            if not error.is_conflict:
                raise

    async def create_event(self, namespace: str, event: Raw) -> None:
        """Create an Event. If it exists already, it was created before a restart."""
        try:
            await self._request("create", EVENTS, namespace, event["metadata"]["name"], body=event)
        except ClusterError as error:
            if not error.is_conflict:
                raise

    async def _request(
        self,
        verb: str,
        resource: Resource,
        namespace: str | None,
        name: str = "",
        *,
        body: Raw | None = None,
        query: Mapping[str, str] | None = None,
        may_miss: bool = False,
    ) -> Raw | None:
        """Send a request; return the object of the reply, or None if there is none of that name."""
        request = _request_of(verb, resource, namespace, name)
        method, content_type = _METHODS[verb]
        call = Call(method, _path(verb, resource, namespace, name, query), content_type, body)
        status, text = await self._connection.send(request, call)
        if status >= 300:
            error = read_error(request, status, text)
            if error.status == 404 and may_miss:
                return None
            raise error
        reply = read_object(request, text, resource.kind, may_be_status=verb == "delete")
        if self.on_written is not None and verb not in ("get", "delete") and is_identified(request, reply):
            self.on_written(resource, reply, verb == "patch status of")
        return reply

    async def _page(self, resource: Resource, namespace: str | None, query: Mapping[str, str]) -> Page:
        """Return one page of a LIST."""
        request = _request_of("list", resource, namespace)
        call = Call("GET", _path("list", resource, namespace, "", query))
        status, text = await self._connection.send(request, call)
        if status >= 300:
            raise read_error(request, status, text)
        return read_page(request, text, resource.kind)


_METHODS: Final = {
    "get": ("GET", "application/json"),
    "create": ("POST", "application/json"),
    "apply": ("PATCH", "application/apply-patch+yaml"),
    "annotate": ("PATCH", "application/merge-patch+json"),
    "patch status of": ("PATCH", "application/merge-patch+json"),
    "patch condition of": ("PATCH", "application/strategic-merge-patch+json"),
    "delete": ("DELETE", "application/json"),
}
"""HTTP method and content type by verb. An apply may be sent as JSON because JSON is YAML."""


def _request_of(verb: str, resource: Resource, namespace: str | None, name: str = "") -> Request:
    return Request(verb, f"{resource.plural} {namespace or '*'}/{name}".rstrip("/"))


def _path(
    verb: str, resource: Resource, namespace: str | None, name: str, query: Mapping[str, str] | None = None
) -> str:
    path = resource.root
    if namespace is not None:
        path += f"/namespaces/{quote(namespace)}"
    path += f"/{resource.plural}"
    if verb not in ("list", "watch", "create"):
        path += f"/{quote(name)}"
    if verb in ("patch status of", "patch condition of"):
        path += "/status"
    return path + (f"?{urlencode(query)}" if query else "")

"""Client of the API server, and the only module that talks to it: a few verbs over `kubernetes.aio`, with plain dicts.

Plain dicts because our own kinds have no generated models, and so that requests look like the golden files. Every
failure is a ClusterError; "not found" on a read is None.
"""

import asyncio
import json
import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Self
from urllib.parse import quote, urlencode

import aiohttp
from kubernetes.aio.client.api_client import ApiClient
from kubernetes.aio.client.configuration import Configuration
from kubernetes.aio.client.exceptions import ApiException
from kubernetes.aio.config import load_incluster_config, load_kube_config

from finetune_api.contract import FINETUNE_JOB_PLURAL, GROUP, INFERENCE_SERVICE_PLURAL, VERSION
from finetune_operator.errors import ClusterError
from finetune_operator.kubernetes_types import Raw

logger = logging.getLogger(__name__)

FIELD_MANAGER: Final = "finetune-operator"
"""Field manager of the operator's server-side applies."""
PAGE_SIZE: Final = 500
"""Objects per page of a LIST, so that thousands of jobs do not make one huge answer."""
REQUEST_SECONDS: Final = 20.0
"""Timeout of one request in seconds. An API server that needs longer is overloaded, and waiting would stall the worker."""


@dataclass(frozen=True)
class Resource:
    """Resource of the API: group, version and plural."""

    group: str
    version: str
    plural: str

    @property
    def root(self) -> str:
        """Path of the API group."""
        return f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"


FINETUNE_JOBS: Final = Resource(GROUP, VERSION, FINETUNE_JOB_PLURAL)
INFERENCE_SERVICES: Final = Resource(GROUP, VERSION, INFERENCE_SERVICE_PLURAL)
JOBS: Final = Resource("batch", "v1", "jobs")
PODS: Final = Resource("", "v1", "pods")
DEPLOYMENTS: Final = Resource("apps", "v1", "deployments")
SERVICES: Final = Resource("", "v1", "services")
BUDGETS: Final = Resource("policy", "v1", "poddisruptionbudgets")
AUTOSCALERS: Final = Resource("autoscaling", "v2", "horizontalpodautoscalers")
CONFIG_MAPS: Final = Resource("", "v1", "configmaps")
CLAIMS: Final = Resource("", "v1", "persistentvolumeclaims")
EVENTS: Final = Resource("events.k8s.io", "v1", "events")

BY_KIND: Final[Mapping[str, Resource]] = {
    "InferenceService": INFERENCE_SERVICES,
    "Job": JOBS,
    "Deployment": DEPLOYMENTS,
    "Service": SERVICES,
    "PodDisruptionBudget": BUDGETS,
    "HorizontalPodAutoscaler": AUTOSCALERS,
    "ConfigMap": CONFIG_MAPS,
    "PersistentVolumeClaim": CLAIMS,
}
"""Resource by kind of manifest. Knative and KServe have kinds of the same names; the operator creates only those here."""


async def load_configuration(kubeconfig: str | None) -> Configuration:
    """Read server address and credentials from disk, where tokens are replaced while the operator runs."""
    configuration = Configuration()
    if kubeconfig is not None:
        await asyncio.to_thread(_load_kubeconfig, kubeconfig, configuration)
    else:
        load_incluster_config(client_configuration=configuration)
    # No retries in the client: the work queue retries, with the object's new state.
    configuration.retries = None
    configuration.connection_pool_maxsize = 64
    return configuration


_KUBECONFIG_LOCK: Final = threading.Lock()


def _load_kubeconfig(path: str, configuration: Configuration) -> None:
    """Load a kubeconfig, one thread at a time.

    The client unpacks certificates into files that it shares between calls, and names them before they are written. kopf's
    thread and ours would read half-written ones.
    """
    with _KUBECONFIG_LOCK:
        asyncio.run(load_kube_config(config_file=path, client_configuration=configuration))


@dataclass(frozen=True)
class Credentials:
    """Address and credentials for a second client (kopf's) of the same server."""

    server: str
    ca_path: str | None
    token: str | None
    certificate_path: str | None
    key_path: str | None


async def read_credentials(kubeconfig: str | None) -> Credentials:
    """Read the current credentials from disk."""
    configuration = await load_configuration(kubeconfig)
    header = configuration.api_key.get("BearerToken") or ""
    return Credentials(
        server=configuration.host,
        ca_path=configuration.ssl_ca_cert,
        token=header.partition(" ")[2].strip() or None,
        certificate_path=configuration.cert_file,
        key_path=configuration.key_file,
    )


class Cluster:
    """Client of the API server. Use it as an async context manager."""

    def __init__(self, kubeconfig: str | None = None) -> None:
        self._kubeconfig = kubeconfig
        self._opened: ApiClient | None = None

    async def __aenter__(self) -> Self:
        self._opened = ApiClient(await load_configuration(self._kubeconfig))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    async def get(self, resource: Resource, namespace: str, name: str) -> Raw | None:
        """Get one object; None if it does not exist."""
        return await self._request("get", resource, namespace, name, may_miss=True)

    async def list(self, resource: Resource, namespace: str | None, selector: str = "") -> list[Raw]:
        """List all objects that match a label selector, in one namespace or in all."""
        items: list[Raw] = []
        query = {"limit": str(PAGE_SIZE), **({"labelSelector": selector} if selector else {})}
        while True:
            page = await self._request("list", resource, namespace, query=query) or {}
            items += page.get("items") or []
            following = page.get("metadata", {}).get("continue")
            if not following:
                return items
            query["continue"] = following

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
        what = f"{resource.plural} {namespace or '*'}/{name}".rstrip("/")
        path = _path(verb, resource, namespace, name) + (f"?{urlencode(query)}" if query else "")
        status, text = await self._send(verb, what, path, body)
        if status == 404 and may_miss:
            return None
        if status >= 300:
            raise ClusterError(verb, what, status, _message(text))
        answer: Raw = json.loads(text)
        return answer

    async def _send(self, verb: str, what: str, path: str, body: Raw | None) -> tuple[int, bytes]:
        method, content_type = _METHODS[verb]
        client = self._client
        try:
            headers = {"Accept": "application/json", "Content-Type": content_type, "User-Agent": FIELD_MANAGER}
            await client.update_params_for_auth(headers, [], ["BearerToken"], path, method, body)
            response = await client.rest_client.request(
                method,
                client.configuration.host + path,
                headers=headers,
                body=body,
                _request_timeout=aiohttp.ClientTimeout(total=REQUEST_SECONDS),
            )
            text = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError, ApiException) as error:
            raise ClusterError(verb, what, 0, f"{type(error).__name__}: {error}") from error
        if response.status == 401:
            # The token may have been replaced on disk: the next request uses the new one.
            client.configuration.api_key = (await load_configuration(self._kubeconfig)).api_key
        return response.status, text

    @property
    def _client(self) -> ApiClient:
        if self._opened is None:
            raise RuntimeError("use Cluster as a context manager")
        return self._opened


_METHODS: Final = {
    "get": ("GET", "application/json"),
    "list": ("GET", "application/json"),
    "create": ("POST", "application/json"),
    "apply": ("PATCH", "application/apply-patch+yaml"),
    "annotate": ("PATCH", "application/merge-patch+json"),
    "patch status of": ("PATCH", "application/merge-patch+json"),
    "patch condition of": ("PATCH", "application/strategic-merge-patch+json"),
    "delete": ("DELETE", "application/json"),
}
"""HTTP method and content type by verb. An apply may be sent as JSON because JSON is YAML."""


def _path(verb: str, resource: Resource, namespace: str | None, name: str) -> str:
    path = resource.root
    if namespace is not None:
        path += f"/namespaces/{quote(namespace)}"
    path += f"/{resource.plural}"
    if verb not in ("list", "create"):
        path += f"/{quote(name)}"
    return path + ("/status" if verb in ("patch status of", "patch condition of") else "")


def _message(text: bytes) -> str:
    """Return the `message` of a metav1.Status, or the beginning of a proxy's answer."""
    try:
        return str(json.loads(text)["message"])
    except (ValueError, KeyError, TypeError):
        return text[:300].decode(errors="replace")

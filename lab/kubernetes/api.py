"""A Kubernetes API client of the few calls that this tool needs, over the standard library.

Tests should use a real client with the kubeconfig; this one exists because the tool runs before anything is installed.
"""

from __future__ import annotations

import base64
import http.client
import json
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.kubernetes.certificates import KeyPair

Manifest = dict[str, Any]
"""A Kubernetes object as JSON."""

_COLLECTIONS = {
    "APIService": "/apis/apiregistration.k8s.io/v1/apiservices",
    "ClusterRole": "/apis/rbac.authorization.k8s.io/v1/clusterroles",
    "ClusterRoleBinding": "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
    "Namespace": "/api/v1/namespaces",
    "PersistentVolume": "/api/v1/persistentvolumes",
    "PersistentVolumeClaim": "/api/v1/namespaces/{namespace}/persistentvolumeclaims",
    "RoleBinding": "/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/rolebindings",
    "Service": "/api/v1/namespaces/{namespace}/services",
    "StorageClass": "/apis/storage.k8s.io/v1/storageclasses",
}

FIELD_MANAGER = "local-cluster"


class ApiError(Exception):
    """The API server answered with an error; `status` is its HTTP code."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status


@dataclass(frozen=True)
class ApiClient:
    url: str
    ca_file: Path
    pair: KeyPair
    """The client certificate that says who is calling."""

    def get(self, path: str) -> Manifest:
        return self._call("GET", path)

    def list(self, path: str) -> list[Manifest]:
        """Return the objects of a collection, with the kind that the API states once for the whole list."""
        answer = self.get(path)
        common = {"apiVersion": answer["apiVersion"], "kind": answer["kind"].removesuffix("List")}
        return [common | item for item in answer["items"]]

    def post(self, path: str, body: Manifest) -> Manifest:
        return self._call("POST", path, body)

    def apply(self, manifest: Manifest) -> Manifest:
        """Server-side apply: create the object or take over the fields that the manifest names."""
        path = f"{object_path(manifest)}?fieldManager={FIELD_MANAGER}&force=true"
        # JSON is YAML, and the API server takes an apply only as YAML.
        return self._call("PATCH", path, manifest, content_type="application/apply-patch+yaml")

    def delete(self, path: str) -> None:
        """Delete an object; one that is already gone is fine."""
        try:
            self._call("DELETE", path)
        except ApiError as error:
            if error.status != 404:
                raise

    def ready(self) -> bool:
        """Return whether the API server has started completely."""
        try:
            self._open("GET", "/readyz").close()
        except (OSError, http.client.HTTPException):
            return False
        return True

    def _call(
        self, method: str, path: str, body: Manifest | None = None, content_type: str = "application/json"
    ) -> Manifest:
        try:
            with self._open(method, path, body, {"Content-Type": content_type}) as response:
                answer: Manifest = json.load(response)
                return answer
        except urllib.error.HTTPError as error:
            text = error.read().decode(errors="replace")
            raise ApiError(error.code, _status_message(text)) from None
        except (http.client.HTTPException, ValueError) as error:
            # A server that is stopped in the middle of an answer leaves half of one; to a caller that is a lost connection.
            raise ConnectionError(f"{method} {path}: the answer broke off: {error!r}") from error

    def _open(
        self, method: str, path: str, body: Manifest | None = None, headers: Mapping[str, str] | None = None
    ) -> Any:
        context = ssl.create_default_context(cafile=str(self.ca_file))
        context.load_cert_chain(self.pair.certificate, self.pair.key)
        data = None if body is None else json.dumps(body).encode()
        headers = dict(headers or {})
        request = urllib.request.Request(self.url + path, data=data, headers=headers, method=method)  # noqa: S310 - https
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )
        return opener.open(request, timeout=30)


def object_path(manifest: Manifest) -> str:
    """Return the URL path of an object of the kinds that this tool creates."""
    metadata = manifest["metadata"]
    collection = _COLLECTIONS[manifest["kind"]].format(namespace=metadata.get("namespace"))
    return f"{collection}/{metadata['name']}"


def write_kubeconfig(file: Path, url: str, ca_file: Path, user: Mapping[str, str]) -> Path:
    """Write a kubeconfig with the certificates inside, so that it may be copied."""
    name = "local"
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": name, "cluster": {"server": url, "certificate-authority-data": _encode(ca_file)}}],
        "users": [{"name": name, "user": dict(user)}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
        "current-context": name,
    }
    partial = file.with_name(f".{file.name}.partial")
    partial.touch(mode=0o600)
    partial.write_text(json.dumps(content, indent=2) + "\n")
    partial.rename(file)
    return file


def certificate_user(pair: KeyPair) -> dict[str, str]:
    """Return the `user` of a kubeconfig that authenticates with a client certificate."""
    return {"client-certificate-data": _encode(pair.certificate), "client-key-data": _encode(pair.key)}


def _encode(file: Path) -> str:
    return base64.b64encode(file.read_bytes()).decode()


def _status_message(text: str) -> str:
    try:
        return str(json.loads(text)["message"])
    except (ValueError, KeyError, TypeError):
        return text.strip()

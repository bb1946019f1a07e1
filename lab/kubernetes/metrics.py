"""The metrics server: what pods use now, for `kubectl top` and for autoscalers, as one more process of this machine.

It asks the kubelet every few seconds. The API server passes questions about `metrics.k8s.io` on to it, over loopback.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path

from lab.kubernetes.api import ApiClient, Manifest, certificate_user, write_kubeconfig
from lab.kubernetes.binaries import binary_path
from lab.kubernetes.certificates import CertificateAuthority, KeyPair
from lab.kubernetes.controlplane import answers
from lab.kubernetes.layout import METRICS_SERVER_PORT, Layout
from lab.kubernetes.processes import Component

RESOLUTION_SECONDS = 15
"""Interval of the readings from the kubelet, as in the release; two readings make the first value."""

_NAME = "metrics-server"
_NAMESPACE = "kube-system"
_USER = "system:metrics-server"
_RBAC = "rbac.authorization.k8s.io"


@dataclass(frozen=True)
class MetricsServer:
    """In this order: `grant` and `write_files`, start the `component`, `register` once it is healthy."""

    layout: Layout
    authority: CertificateAuthority
    url: str
    """The API server as processes of this machine reach it."""

    def grant(self, api: ApiClient) -> None:
        """Grant the metrics server what it reads, and everybody who may see pods its answers."""
        for manifest in _permissions():
            api.apply(manifest)

    def write_files(self) -> None:
        """Certificates and kubeconfig; made once for each control plane."""
        complete = self.authority.directory / f"{_NAME}-complete"
        if not complete.exists():
            self.authority.issue_client(_NAME, _USER)
            # The API server checks this name, whatever address it connects to.
            self.authority.issue_server(f"{_NAME}-serving", [f"{_NAME}.{_NAMESPACE}.svc"])
            complete.touch()
        user = certificate_user(self._pair(_NAME))
        write_kubeconfig(self._kubeconfig, self.url, self.authority.pair.certificate, user)

    def component(self) -> Component:
        server = self._pair(f"{_NAME}-serving")
        return Component(
            name=_NAME,
            command=(
                str(binary_path(_NAME)),
                f"--kubeconfig={self._kubeconfig}",
                f"--authentication-kubeconfig={self._kubeconfig}",
                f"--authorization-kubeconfig={self._kubeconfig}",
                "--bind-address=127.0.0.1",
                f"--secure-port={METRICS_SERVER_PORT}",
                f"--tls-cert-file={server.certificate}",
                f"--tls-private-key-file={server.key}",
                f"--kubelet-certificate-authority={self.authority.pair.certificate}",
                "--kubelet-preferred-address-types=InternalIP",
                "--kubelet-use-node-status-port",
                f"--metric-resolution={RESOLUTION_SECONDS}s",
            ),
            healthy=lambda: answers(f"https://127.0.0.1:{METRICS_SERVER_PORT}/livez"),
            files=(self._kubeconfig, server.certificate),
        )

    def register(self, api: ApiClient) -> None:
        """Make it a part of the API. Not before it answers: while a part of the API is missing, no namespace can go."""
        for manifest in _registration(self.authority):
            api.apply(manifest)

    def _pair(self, name: str) -> KeyPair:
        return KeyPair(self.authority.directory / f"{name}.crt", self.authority.directory / f"{name}.key")

    @property
    def _kubeconfig(self) -> Path:
        return self.layout.node / f"{_NAME}.kubeconfig"


def _permissions() -> list[Manifest]:
    """Return the rights that the release of the metrics server has, for a user instead of a service account."""
    readers = {f"{_RBAC}/aggregate-to-{role}": "true" for role in ("view", "edit", "admin")}
    return [
        {
            **_rbac("ClusterRole", "system:aggregated-metrics-reader", labels=readers),
            "rules": [
                {"apiGroups": ["metrics.k8s.io"], "resources": ["pods", "nodes"], "verbs": ["get", "list", "watch"]}
            ],
        },
        {
            **_rbac("ClusterRole", _USER),
            "rules": [
                {"apiGroups": [""], "resources": ["nodes/metrics"], "verbs": ["get"]},
                {"apiGroups": [""], "resources": ["pods", "nodes"], "verbs": ["get", "list", "watch"]},
            ],
        },
        {**_rbac("ClusterRoleBinding", _USER), **_binding("ClusterRole", _USER)},
        {
            **_rbac("ClusterRoleBinding", f"{_NAME}:system:auth-delegator"),
            **_binding("ClusterRole", "system:auth-delegator"),
        },
        {
            **_rbac("RoleBinding", f"{_NAME}-auth-reader", namespace=_NAMESPACE),
            **_binding("Role", "extension-apiserver-authentication-reader"),
        },
    ]


def _rbac(kind: str, name: str, **metadata: object) -> Manifest:
    return {"apiVersion": f"{_RBAC}/v1", "kind": kind, "metadata": {"name": name, **metadata}}


def _binding(kind: str, role: str) -> Manifest:
    return {
        "roleRef": {"apiGroup": _RBAC, "kind": kind, "name": role},
        "subjects": [{"apiGroup": _RBAC, "kind": "User", "name": _USER}],
    }


def _registration(authority: CertificateAuthority) -> list[Manifest]:
    return [
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": _NAME, "namespace": _NAMESPACE},
            # The name is looked up by the API server, which is on this machine too.
            "spec": {"type": "ExternalName", "externalName": "localhost"},
        },
        {
            "apiVersion": "apiregistration.k8s.io/v1",
            "kind": "APIService",
            "metadata": {"name": "v1beta1.metrics.k8s.io"},
            "spec": {
                "group": "metrics.k8s.io",
                "version": "v1beta1",
                "service": {"name": _NAME, "namespace": _NAMESPACE, "port": METRICS_SERVER_PORT},
                "caBundle": base64.b64encode(authority.pair.certificate.read_bytes()).decode(),
                "groupPriorityMinimum": 100,
                "versionPriority": 100,
            },
        },
    ]

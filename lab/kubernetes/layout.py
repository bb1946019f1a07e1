"""Where things are: the folders of the machine's one local cluster, its addresses and its ports.

The root is outside of every checkout on purpose. A machine has one kubelet, one containerd and one port 5000, so all
checkouts share (and may replace) the same cluster, and a fresh clone finds the images of the last one.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

NODE_NAME = "local"

POD_RANGE = "10.244.0.0/24"
BRIDGE_ADDRESS = "10.244.0.1"
"""The machine as its pods see it: API server, kubelet and cluster DNS listen here."""
POD_BRIDGE = "ft-pods"

SERVICE_RANGE = "10.96.0.0/20"
SERVICE_BRIDGE = "ft-services"
"""A bridge without ports. The service range is routed to it, so a packet that no rule rewrites dies on this machine."""

API_SERVER_PORT = 6443
REGISTRY_ADDRESS = "127.0.0.1:5000"
REGISTRY = "localhost:5000"
"""Prefix of the images' names; containerd and buildah speak plain HTTP to a registry of this name."""

KUBELET_PORT = 10250
KUBELET_HEALTH_PORT = 10248
KUBE_PROXY_HEALTH_PORT = 10256
COREDNS_READY_PORT = 10271
METRICS_SERVER_PORT = 10272


@dataclass(frozen=True)
class Layout:
    """The folders of the cluster; what is not called kept is wiped by `down` and by a cold `up`."""

    root: Path

    @property
    def control_plane(self) -> Path:
        return self.root / "control-plane"

    @property
    def node(self) -> Path:
        """State of kubelet, containerd and the pod network, with everything that they mount."""
        return self.root / "node"

    @property
    def processes(self) -> Path:
        """Pid files."""
        return self.root / "processes"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def volumes(self) -> Path:
        """One directory for each local PersistentVolume."""
        return self.root / "volumes"

    @property
    def containerd(self) -> Path:
        """Unpacked images. Kept: unpacking gigabytes again would dominate every `up`."""
        return self.root / "containerd"

    @property
    def registry(self) -> Path:
        """Pushed images. Kept."""
        return self.root / "registry"

    @property
    def buildah(self) -> Path:
        """Layers of image builds. Kept: they make the next build incremental."""
        return self.root / "buildah"

    @property
    def models(self) -> Path:
        """Base models; the content of every volume called `models`. Kept."""
        return self.root / "models"

    @property
    def containerd_socket(self) -> Path:
        return self.node / "containerd.sock"

    @property
    def kubeconfig(self) -> Path:
        return self.control_plane / "admin.kubeconfig"

    @property
    def audit_log(self) -> Path:
        return self.control_plane / "audit.log"

    @property
    def images_report(self) -> Path:
        """Report of the last build of images, as JSON."""
        return self.root / "images.json"

    @property
    def wiped(self) -> tuple[Path, ...]:
        return (self.control_plane, self.node, self.processes, self.logs, self.volumes)


def default_layout() -> Layout:
    """Return the layout of the machine's cluster; FINETUNE_CLUSTER_ROOT moves it, for example to a bigger disk."""
    return Layout(Path(os.environ.get("FINETUNE_CLUSTER_ROOT") or "/var/lib/finetune-operator-local"))

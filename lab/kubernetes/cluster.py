"""`up`, `down` and `status`: the whole cluster of this machine, brought to one of two states from whatever is there.

`up` trusts nothing that an earlier command left behind. A component that runs as described and answers is kept, all
others are started; if etcd is not running there is no cluster, and everything an earlier one left is removed first.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from lab.kubernetes import network, node
from lab.kubernetes.api import ApiError
from lab.kubernetes.base_images import ensure_pause_image, pause_reference
from lab.kubernetes.binaries import ensure_binaries, remove_build_caches, search_path
from lab.kubernetes.controlplane import ControlPlane, NodeAccess, Ports
from lab.kubernetes.errors import ClusterError
from lab.kubernetes.layout import API_SERVER_PORT, BRIDGE_ADDRESS, NODE_NAME, SERVICE_RANGE, Layout
from lab.kubernetes.metrics import MetricsServer
from lab.kubernetes.packages import ensure_packages
from lab.kubernetes.processes import Supervisor
from lab.kubernetes.progress import say, step
from lab.kubernetes.storage import create_storage_class, recycle_volumes

_PORTS = Ports(api_server=API_SERVER_PORT, etcd_client=2379, etcd_peer=2380, controller_manager=10257, scheduler=10259)

START_DISK_GIB = 3
"""Free space without which a cluster makes no sense: pods would be evicted before they start."""

_NODE_STOP_ORDER = ("kubelet", "kube-proxy", "coredns")
"""The kubelet first: it would start anew what is removed after it."""

_DNS_ROLE = {
    "apiVersion": "rbac.authorization.k8s.io/v1",
    "kind": "ClusterRole",
    "metadata": {"name": "local-cluster-dns"},
    "rules": [
        {"apiGroups": [""], "resources": ["services", "pods", "namespaces"], "verbs": ["list", "watch"]},
        {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
    ],
}
_DNS_ROLE_BINDING = {
    "apiVersion": "rbac.authorization.k8s.io/v1",
    "kind": "ClusterRoleBinding",
    "metadata": {"name": "local-cluster-dns"},
    "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "local-cluster-dns"},
    "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "system:coredns"}],
}


@dataclass(frozen=True)
class ComponentStatus:
    name: str
    pid: int | None
    """None for a component that does not run."""
    memory_mib: int


class Cluster:
    """The cluster of one layout."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.supervisor = Supervisor(layout.processes, layout.logs, detached=True)
        first_service_address = SERVICE_RANGE.partition("/")[0].rpartition(".")[0] + ".1"
        self.control_plane = ControlPlane(
            layout.control_plane,
            controllers=True,
            scheduler=True,
            ports=_PORTS,
            node=NodeAccess(BRIDGE_ADDRESS, extra_names=(first_service_address,)),
            supervisor=self.supervisor,
        )
        self.node = node.Node(layout, self.control_plane.authority, self.control_plane.url)
        self.metrics = MetricsServer(layout, self.control_plane.authority, self.control_plane.url)

    def up(self, beside: Callable[[], None] | None = None) -> None:
        """Return with a Ready node; safe to repeat, and after an interruption at any point.

        `beside` runs while programs are compiled and started: images need only the registry and the container runtime.
        """
        with self.lock():
            ensure_packages()
            if self.supervisor.find("etcd") is None:
                with self.image_lock(), step("remove what an earlier cluster left behind"):
                    self._remove()
            self._require_disk()
            self._start_runtime()
            with ThreadPoolExecutor(1) as pool:
                other = pool.submit(beside) if beside else None
                try:
                    ensure_binaries()
                    self._start()
                except Exception as error:
                    if other and not other.done():
                        say(f"{error}; waiting for the build of the images to end")
                    raise
            if other:
                other.result()
        say(f"the cluster is up; for your shell: {environment_hint()}")

    def down(self, *, purge: bool = False) -> None:
        """Remove every process, device, rule, mount and file of the cluster; images stay unless they are purged."""
        with self.lock(), self.image_lock():
            with step("stop the cluster"):
                self._remove()
            if purge:
                with step(f"remove images, models and build layers below {self.layout.root}, and Go's caches"):
                    shutil.rmtree(self.layout.root)
                    remove_build_caches()

    def status(self) -> list[ComponentStatus]:
        known = [component.name for component in self.control_plane.components()]
        names = [*known, "registry", "containerd", "kubelet", "kube-proxy", "coredns", "metrics-server"]
        return [self._component_status(name) for name in names]

    def node_ready(self) -> bool:
        if not self.layout.kubeconfig.exists() or not self.control_plane.admin.ready():
            return False
        try:
            return node.node_is_ready(self.control_plane.admin.get(f"/api/v1/nodes/{NODE_NAME}"))
        except ApiError:
            return False

    def require_running(self) -> None:
        if not self.node_ready():
            raise ClusterError("there is no running cluster on this machine; start one with `up`")

    def start_metrics(self) -> None:
        """Add the metrics server, for `kubectl top` and autoscalers; compile it first if it is not compiled."""
        with self.lock():
            self.require_running()
            ensure_binaries(["metrics-server"])
            with step("metrics server"):
                self.metrics.grant(self.control_plane.admin)
                self.metrics.write_files()
                self.supervisor.start(self.metrics.component())
                self.supervisor.wait_until_healthy(self.metrics.component())
                self.metrics.register(self.control_plane.admin)

    def ensure_registry(self) -> None:
        """Start the image registry: images can be built without a cluster, but not without a place to push them to."""
        component = node.registry(self.layout)
        self.supervisor.start(component)
        self.supervisor.wait_until_healthy(component)

    def lock(self) -> contextlib.AbstractContextManager[None]:
        """One command at a time changes the machine."""
        return self._lock("cluster.lock", "wait for another command that changes the cluster")

    def image_lock(self) -> contextlib.AbstractContextManager[None]:
        """One command at a time builds images, which may take long. Whoever needs both locks takes this one second."""
        return self._lock("images.lock", "wait for another command that builds images")

    @contextlib.contextmanager
    def _lock(self, name: str, reason: str) -> Iterator[None]:
        if os.geteuid() != 0:
            raise ClusterError("the local cluster needs root: it mounts, makes network devices and runs containers")
        self.layout.root.mkdir(parents=True, exist_ok=True)
        with (self.layout.root / name).open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                with step(reason):
                    fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _start_runtime(self) -> None:
        with step("network, image registry and container runtime"):
            network.set_up(self.layout)
            self.ensure_registry()
            ensure_pause_image(self.layout)
            containerd = node.containerd(self.layout, pause_reference())
            self.supervisor.start(containerd)
            self.supervisor.wait_until_healthy(containerd)

    def _start(self) -> None:
        with step("certificates, and the start of the control plane") as current:
            started = self.control_plane.launch()
            current.note(f"started {', '.join(started)}" if started else "already running")
        with step("API server, controllers and scheduler are healthy"):
            self.control_plane.wait_until_ready()
        with step("kubelet, cluster DNS and service proxy"):
            self._start_node()
        with step("storage class and volumes"):
            create_storage_class(self.control_plane.admin)
            recycle_volumes(self.control_plane.admin, self.layout)
        with step("node Ready"):
            node.wait_until_ready(self.control_plane.admin)

    def _start_node(self) -> None:
        api = self.control_plane.admin
        self.node.write_files()
        self.supervisor.start(self.node.kubelet())
        for manifest in (_DNS_ROLE, _DNS_ROLE_BINDING):
            api.apply(manifest)
        self.supervisor.start(self.node.coredns())
        node.wait_for_registration(api)
        self.supervisor.start(self.node.kube_proxy())
        for component in (self.node.kubelet(), self.node.coredns(), self.node.kube_proxy()):
            self.supervisor.wait_until_healthy(component)

    def _remove(self) -> None:
        for name in _NODE_STOP_ORDER:
            self.supervisor.stop(name)
        if self.supervisor.find("containerd") is not None:
            node.stop_containers(self.layout)
        self.supervisor.stop("containerd")
        node.kill_container_leftovers(self.layout)
        for name in reversed(self.supervisor.names()):
            # An API server waits long for clients to leave; its state goes away with it, so there is nothing to save.
            self.supervisor.stop(name, seconds=2)
        node.unmount_everything(self.layout)
        network.tear_down(self.layout)
        node.remove_pod_cgroups()
        node.remove_log_links(self.layout)
        for directory in self.layout.wiped:
            shutil.rmtree(directory, ignore_errors=True)

    def _require_disk(self) -> None:
        free = shutil.disk_usage(self.layout.root).free / 2**30
        if free < START_DISK_GIB:
            raise ClusterError(
                f"{self.layout.root} has {free:.1f} GiB of free disk; the cluster needs {START_DISK_GIB}"
            )

    def _component_status(self, name: str) -> ComponentStatus:
        process = self.supervisor.find(name)
        if process is None:
            return ComponentStatus(name, None, 0)
        return ComponentStatus(name, process.pid, _resident_mib(process.pid))


def environment(layout: Layout) -> dict[str, str]:
    """Return the variables with which a shell uses the cluster."""
    return {"KUBECONFIG": str(layout.kubeconfig), "PATH": f"{search_path()}{os.pathsep}$PATH"}


def environment_hint() -> str:
    return 'eval "$(python3 -m lab.kubernetes env)"'


def _resident_mib(pid: int) -> int:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE") // 2**20

"""The node: registry, container runtime, kubelet, service proxy and cluster DNS, all as processes of this machine."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lab.kubernetes import templates
from lab.kubernetes.api import ApiClient, ApiError, Manifest, certificate_user, write_kubeconfig
from lab.kubernetes.binaries import binary_path
from lab.kubernetes.certificates import CertificateAuthority, KeyPair
from lab.kubernetes.controlplane import answers
from lab.kubernetes.errors import ClusterError
from lab.kubernetes.layout import (
    BRIDGE_ADDRESS,
    COREDNS_READY_PORT,
    KUBE_PROXY_HEALTH_PORT,
    KUBELET_HEALTH_PORT,
    KUBELET_PORT,
    NODE_NAME,
    POD_RANGE,
    REGISTRY_ADDRESS,
    Layout,
)
from lab.kubernetes.processes import Component, command_lines, terminate
from lab.kubernetes.progress import step

READY_SECONDS = 60.0
"""Longest time from the first registration of the node to Ready, in seconds."""


def registry(layout: Layout) -> Component:
    configuration = templates.write(
        "registry.yaml", layout.root / "registry.yaml", directory=layout.registry, address=REGISTRY_ADDRESS
    )
    return Component(
        name="registry",
        command=("docker-registry", "serve", str(configuration)),
        healthy=lambda: answers(f"http://{REGISTRY_ADDRESS}/v2/"),
        files=(configuration,),
    )


def containerd(layout: Layout, pause_image: str) -> Component:
    configuration = templates.write(
        "containerd.toml",
        layout.node / "containerd.toml",
        root=layout.containerd,
        state=layout.node / "containerd",
        socket=layout.containerd_socket,
        pause_image=pause_image,
        cni_directory=layout.node / "cni",
        runc_root=layout.node / "runc",
    )
    return Component(
        name="containerd",
        command=("containerd", "--config", str(configuration)),
        healthy=lambda: _run_ctr(layout, "version") is not None,
        files=(configuration,),
    )


@dataclass(frozen=True)
class Node:
    """The components that need a control plane; `write_files` before any of them is started."""

    layout: Layout
    authority: CertificateAuthority
    url: str
    """The API server as processes of this machine reach it."""

    def write_files(self) -> None:
        """Certificates and kubeconfigs; made once for each control plane."""
        self.layout.node.mkdir(parents=True, exist_ok=True)
        (self.layout.node / "resolv.conf").touch()
        complete = self.authority.directory / "node-complete"
        if not complete.exists():
            self.authority.issue_client("kubelet", f"system:node:{NODE_NAME}", ["system:nodes"])
            self.authority.issue_client("kube-proxy", "system:kube-proxy")
            self.authority.issue_client("coredns", "system:coredns")
            # The API server checks this name when it fetches logs or opens a shell in a pod.
            self.authority.issue_server("kubelet-server", [NODE_NAME, BRIDGE_ADDRESS])
            complete.touch()
        for name in ("kubelet", "kube-proxy", "coredns"):
            user = certificate_user(self._pair(name))
            write_kubeconfig(self._kubeconfig(name), self.url, self.authority.pair.certificate, user)

    def kubelet(self) -> Component:
        server = self._pair("kubelet-server")
        configuration = templates.write(
            "kubelet.yaml",
            self.layout.node / "kubelet.yaml",
            address=BRIDGE_ADDRESS,
            port=KUBELET_PORT,
            health_port=KUBELET_HEALTH_PORT,
            ca_file=self.authority.pair.certificate,
            certificate=server.certificate,
            key=server.key,
            socket=self.layout.containerd_socket,
            resolv_conf=self.layout.node / "resolv.conf",
            pod_logs=self.layout.node / "pod-logs",
        )
        kubeconfig = self._kubeconfig("kubelet")
        return Component(
            name="kubelet",
            command=(
                str(binary_path("kubelet")),
                f"--config={configuration}",
                f"--kubeconfig={kubeconfig}",
                f"--root-dir={self.layout.node / 'kubelet'}",
                f"--hostname-override={NODE_NAME}",
                f"--node-ip={BRIDGE_ADDRESS}",
            ),
            healthy=lambda: answers(f"http://127.0.0.1:{KUBELET_HEALTH_PORT}/healthz"),
            files=(configuration, kubeconfig),
        )

    def kube_proxy(self) -> Component:
        kubeconfig = self._kubeconfig("kube-proxy")
        configuration = templates.write(
            "kube-proxy.yaml",
            self.layout.node / "kube-proxy.yaml",
            pod_range=POD_RANGE,
            node_name=NODE_NAME,
            health_port=KUBE_PROXY_HEALTH_PORT,
            kubeconfig=kubeconfig,
        )
        return Component(
            name="kube-proxy",
            command=(str(binary_path("kube-proxy")), f"--config={configuration}"),
            healthy=lambda: answers(f"http://127.0.0.1:{KUBE_PROXY_HEALTH_PORT}/livez"),
            files=(configuration, kubeconfig),
        )

    def coredns(self) -> Component:
        kubeconfig = self._kubeconfig("coredns")
        configuration = templates.write(
            "Corefile",
            self.layout.node / "Corefile",
            address=BRIDGE_ADDRESS,
            ready_port=COREDNS_READY_PORT,
            kubeconfig=kubeconfig,
        )
        return Component(
            name="coredns",
            command=(str(binary_path("coredns")), "-conf", str(configuration)),
            healthy=lambda: answers(f"http://127.0.0.1:{COREDNS_READY_PORT}/ready"),
            files=(configuration, kubeconfig),
        )

    def _pair(self, name: str) -> KeyPair:
        return KeyPair(self.authority.directory / f"{name}.crt", self.authority.directory / f"{name}.key")

    def _kubeconfig(self, name: str) -> Path:
        return self.layout.node / f"{name}.kubeconfig"


def wait_for_registration(api: ApiClient) -> None:
    """Return when the kubelet has created its Node; the service proxy would wait for it much less patiently."""
    _wait_for_node(api, lambda _: True, "registered")


def wait_until_ready(api: ApiClient) -> None:
    """Return when the API server says that pods can run on the node."""
    _wait_for_node(api, node_is_ready, "Ready")


def node_is_ready(node: Manifest) -> bool:
    conditions = node["status"].get("conditions", [])
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)


def stop_containers(layout: Layout) -> None:
    """End every container and its shim; containerd itself would leave them running."""
    for task in (_run_ctr(layout, "tasks", "ls", "-q") or "").split():
        _run_ctr(layout, "tasks", "rm", "--force", task)
    for container in (_run_ctr(layout, "containers", "ls", "-q") or "").split():
        _run_ctr(layout, "containers", "rm", container)


def pull_image(layout: Layout, reference: str) -> None:
    """Unpack a pushed image for the kubelet, so that no pod waits for it. Without a container runtime, pods pull it."""
    if _run_ctr(layout, "version") is None or reference in (_run_ctr(layout, "images", "ls", "-q") or "").split():
        return
    with step(f"unpack {repository_of(reference)}"):
        if _run_ctr(layout, "images", "pull", "--plain-http", reference) is None:
            raise ClusterError(f"containerd cannot pull {reference}; the end of its log is in {layout.logs}")


def remove_images(layout: Layout, repositories: set[str], keep: set[str]) -> None:
    """Remove unpacked images of these repositories whose digest is not to be kept; running pods keep their files."""
    listing = [line.split() for line in (_run_ctr(layout, "images", "ls") or "").splitlines()[1:]]
    unused = {digest for name, _, digest, *_ in listing if repository_of(name) in repositories and digest not in keep}
    for name, _, digest, *_ in listing:  # the same image is listed by tag, by digest and by its own id
        if digest in unused:
            _run_ctr(layout, "images", "rm", "--sync", name)


def repository_of(reference: str) -> str:
    """`name` of `registry:port/name:tag` or `registry:port/name@digest`."""
    return reference.partition("/")[2].partition("@")[0].partition(":")[0]


def kill_container_leftovers(layout: Layout) -> None:
    """End pods and shims whose containerd is already gone, as after a crash of the machine's processes."""
    in_pods = {int(pid) for group in _pod_cgroups() for pid in _processes_of(group)}
    socket = str(layout.containerd_socket)
    shims = {pid for pid, command in command_lines().items() if "shim" in command[0] and socket in command}
    terminate(in_pods | shims, seconds=0)
    # A killed shim leaves its socket in a place that all containerds share; its address is in the folder of its pod.
    for address in (layout.node / "containerd").glob("io.containerd.runtime.v2.task/*/*/address"):
        Path(address.read_text().strip().removeprefix("unix://")).unlink(missing_ok=True)


def remove_pod_cgroups() -> None:
    """Remove the pods' control groups, the innermost first, because the kernel removes only empty ones."""
    for group in sorted(_pod_cgroups(), key=lambda path: len(path.parts), reverse=True):
        with contextlib.suppress(OSError):
            group.rmdir()


def unmount_everything(layout: Layout) -> None:
    """Unmount what containerd and the kubelet have mounted below the root, the innermost first."""
    for _ in range(3):  # a mount may lie over another one at the same place
        mounted = mounts_below(layout.root)
        for target in sorted(mounted, key=len, reverse=True):
            subprocess.run(["umount", "--lazy", target], capture_output=True)
        if not mounted:
            return
    remaining = mounts_below(layout.root)
    if remaining:
        raise ClusterError(f"cannot unmount {', '.join(remaining)}")


def mounts_below(root: Path) -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    targets = [line.split()[4].replace("\\040", " ") for line in lines]
    return [target for target in targets if target.startswith(f"{root}/")]


def remove_log_links(layout: Layout) -> None:
    """Remove the kubelet's links to container logs, which are in a folder whose name is fixed."""
    for link in Path("/var/log/containers").glob("*.log"):
        if link.is_symlink() and link.readlink().is_relative_to(layout.node):
            link.unlink()


def _wait_for_node(api: ApiClient, condition: Callable[[Manifest], bool], state: str) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        try:
            if condition(api.get(f"/api/v1/nodes/{NODE_NAME}")):
                return
        except ApiError as error:
            if error.status != 404:
                raise
        time.sleep(0.1)
    raise ClusterError(f"the node {NODE_NAME} is not {state} after {READY_SECONDS:.0f} s")


def _pod_cgroups() -> list[Path]:
    """Control groups of pods, of cgroup v1 (one tree for each controller) or v2."""
    roots = [Path("/sys/fs/cgroup/kubepods"), *Path("/sys/fs/cgroup").glob("*/kubepods")]
    return [group for root in roots if root.is_dir() for group in (root, *_directories_below(root))]


def _directories_below(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_dir()]


def _processes_of(group: Path) -> list[str]:
    try:
        return (group / "cgroup.procs").read_text().split()
    except OSError:
        return []


def _run_ctr(layout: Layout, *arguments: str) -> str | None:
    """Output of containerd's own client in the namespace of Kubernetes; None if it fails."""
    if shutil.which("ctr") is None or not layout.containerd_socket.exists():
        return None
    command = ["ctr", "--address", str(layout.containerd_socket), "--connect-timeout", "2s", "-n", "k8s.io", *arguments]
    result = subprocess.run(command, capture_output=True, text=True)
    return result.stdout if result.returncode == 0 else None

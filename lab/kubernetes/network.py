"""The machine's side of the pod network: two bridges, a packet filter, a few kernel settings, and their removal.

Everything made here has a name of ours, so that it can be found and removed after any kind of end.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

from lab.kubernetes import templates
from lab.kubernetes.errors import ClusterError
from lab.kubernetes.layout import (
    API_SERVER_PORT,
    BRIDGE_ADDRESS,
    KUBELET_PORT,
    POD_BRIDGE,
    POD_RANGE,
    SERVICE_BRIDGE,
    SERVICE_RANGE,
    Layout,
)
from lab.kubernetes.processes import boot_id

NETWORK_NAME = "finetune-local"
"""Name of the CNI network and of our packet filter table."""

_FILTER_TABLE = "finetune_local"

_SETTINGS = {
    "net/ipv4/ip_forward": "1",
    # Each container runtime shim and each watching pod takes some; the usual 128 are soon used up.
    "fs/inotify/max_user_instances": "8192",
    # Pods sit on one bridge; without this an answer of one to another would pass by the service proxy.
    "net/bridge/bridge-nf-call-iptables": "1",
}
"""Kernel settings that the cluster needs."""

_SAVED_SETTINGS = (
    *_SETTINGS,
    "kernel/keys/root_maxbytes",
    "kernel/keys/root_maxkeys",
    "kernel/panic",
    "kernel/panic_on_oops",
    "vm/overcommit_memory",
    "vm/panic_on_oom",
)
"""Settings that `down` restores: our own and those that a kubelet changes."""


def set_up(layout: Layout) -> None:
    """Create what is missing; what is already there stays as it is, so running pods are not disturbed."""
    if not _setting("net/bridge").exists():
        _run("modprobe", "br_netfilter")
    _save_settings(layout)
    for name, value in _SETTINGS.items():
        _setting(name).write_text(value)
    _ensure_bridge(POD_BRIDGE, f"{BRIDGE_ADDRESS}/{POD_RANGE.partition('/')[2]}")
    _ensure_bridge(SERVICE_BRIDGE, None)
    _run("ip", "route", "replace", SERVICE_RANGE, "dev", SERVICE_BRIDGE, "src", BRIDGE_ADDRESS)
    rules = templates.render(
        "packet-filter.nft", table=_FILTER_TABLE, pod_bridge=POD_BRIDGE, ports=f"{API_SERVER_PORT}, {KUBELET_PORT}"
    )
    _run("nft", "-f", "-", stdin=rules)
    templates.write(
        "pods.conflist",
        layout.node / "cni" / "10-pods.conflist",
        network=NETWORK_NAME,
        bridge=POD_BRIDGE,
        data_directory=layout.node / "cni-addresses",
        pod_range=POD_RANGE,
        gateway=BRIDGE_ADDRESS,
    )


def tear_down(layout: Layout) -> None:
    """Remove every device, rule and file of the pod network, and put the kernel settings back."""
    for link in _links_of(POD_BRIDGE):
        _run("ip", "link", "delete", link, check=False)
    for bridge in (POD_BRIDGE, SERVICE_BRIDGE):
        if Path(f"/sys/class/net/{bridge}").exists():
            _run("ip", "link", "delete", bridge)
    if shutil.which("nft"):
        for family, table in (("inet", _FILTER_TABLE), ("ip", "kube-proxy"), ("ip6", "kube-proxy")):
            _run("nft", "delete", "table", family, table, check=False)
    # The cache of the CNI library has a fixed place; each entry names the network namespace of its pod.
    for result in Path("/var/lib/cni/results").glob("*"):
        if str(layout.root) in result.read_text(errors="replace"):
            result.unlink()
    _restore_settings(layout)


def leftovers() -> list[str]:
    """Network devices and packet filter tables of the cluster that exist now."""
    found = [name for name in (POD_BRIDGE, SERVICE_BRIDGE) if Path(f"/sys/class/net/{name}").exists()]
    if shutil.which("nft"):
        tables = _run("nft", "list", "tables").split("table ")
        found += [
            f"nft table {name.strip()}" for name in tables if name.strip().endswith((_FILTER_TABLE, "kube-proxy"))
        ]
    return found


def _ensure_bridge(name: str, address: str | None) -> None:
    if not Path(f"/sys/class/net/{name}").exists():
        _run("ip", "link", "add", name, "type", "bridge")
    if address is not None:
        _run("ip", "address", "replace", address, "dev", name)
    _run("ip", "link", "set", name, "up")


def _links_of(bridge: str) -> list[str]:
    """Return the machine's ends of the pods' virtual network links."""
    ports = Path(f"/sys/class/net/{bridge}/brif")
    return [port.name for port in ports.iterdir()] if ports.exists() else []


def _setting(name: str) -> Path:
    return Path("/proc/sys") / name


def _settings_file(layout: Layout) -> Path:
    return layout.root / "kernel-settings.json"


def _save_settings(layout: Layout) -> None:
    """Remember the values from before the cluster; those of another boot say nothing about this one."""
    file = _settings_file(layout)
    if file.exists() and json.loads(file.read_text()).get("boot_id") == boot_id():
        return
    values = {name: _setting(name).read_text().strip() for name in _SAVED_SETTINGS if _setting(name).exists()}
    partial = file.with_name(f".{file.name}.partial")
    partial.write_text(json.dumps({"boot_id": boot_id(), "values": values}, indent=2))
    partial.rename(file)


def _restore_settings(layout: Layout) -> None:
    file = _settings_file(layout)
    if not file.exists():
        return
    saved = json.loads(file.read_text())
    if saved["boot_id"] == boot_id():
        for name, value in saved["values"].items():
            _setting(name).write_text(value)
    file.unlink()


def _run(*command: str, stdin: str | None = None, check: bool = True) -> str:
    result = subprocess.run(command, input=stdin, capture_output=True, text=True)
    if check and result.returncode != 0:
        raise ClusterError(f"`{' '.join(command)}` failed: {result.stderr.strip()}")
    return result.stdout

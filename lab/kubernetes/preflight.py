"""Preflight of the local cluster, `python3 -m lab.kubernetes.preflight`: one sentence if this machine cannot run a node.

Runs before anything is installed. `obstacle` decides from facts; `gather` collects them.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

COLD_DISK_GIB = 25
"""Free space for a first run: Go caches and programs 6, torch and its images 12, and room for pods and volumes."""
WARM_DISK_GIB = 3

ALTERNATIVE = "`make try` needs none of this: the same fine-tuning without a cluster."

_CAP_NET_ADMIN, _CAP_SYS_ADMIN = 12, 21


@dataclass(frozen=True)
class Facts:
    """The properties of a machine that decide."""

    system: str
    """Name of the kernel, as `uname` prints it."""
    root: bool
    privileged: bool
    """True if this process may mount and make network devices; root in a container may not."""
    overlay: bool
    """True if an overlay file system can be mounted where the images would be."""
    cgroups: bool
    """True if control groups can be made."""
    packages: bool
    """True if the Debian packages of the cluster are installed, or apt-get can install them."""
    go: tuple[int, int] | None
    """Version of the Go compiler, None without one."""
    go_needed: tuple[int, int]
    compiled: bool
    """True if the cluster's programs are compiled already, so that Go is not needed."""
    built: bool
    """True if images of an earlier run exist, so that little disk is needed."""
    free_gib: float


def obstacle(facts: Facts) -> str | None:
    """Return the first reason why this machine cannot run a node; None if it can."""
    needed_gib = WARM_DISK_GIB if facts.compiled and facts.built else COLD_DISK_GIB
    go = "missing" if facts.go is None else f"{facts.go[0]}.{facts.go[1]}"
    wanted = ".".join(map(str, facts.go_needed))
    reasons = [
        (facts.system != "Linux", f"a node needs Linux, this is {facts.system}"),
        (not facts.root, "a node needs root: it mounts, makes network devices and runs containers"),
        (not facts.privileged, "root has no right to mount or to make network devices here, as in most containers"),
        (not facts.overlay, "no overlay file system can be mounted for images"),
        (not facts.cgroups, "control groups cannot be made below /sys/fs/cgroup"),
        (not facts.packages, "containerd and other Debian packages are missing, and there is no apt-get"),
        (not facts.compiled and (facts.go or (0, 0)) < facts.go_needed, f"Go is {go}, {wanted} or newer is needed"),
        (facts.free_gib < needed_gib, f"{facts.free_gib:.0f} GiB of disk are free, {needed_gib} are needed"),
    ]
    return next((reason for applies, reason in reasons if applies), None)


def sentence(reason: str) -> str:
    """Return the line for the person who started the demonstration."""
    return f"This machine cannot run a Kubernetes node: {reason}. {ALTERNATIVE}"


def gather() -> Facts:
    """Collect the facts of this machine in a fraction of a second, and leave nothing behind."""
    from lab.kubernetes.binaries import GO_NEEDED, cache_directory, go_version, missing_binaries
    from lab.kubernetes.layout import default_layout
    from lab.kubernetes.packages import missing_packages

    layout = default_layout()
    linux = sys.platform == "linux"
    root = os.geteuid() == 0
    privileged = linux and root and _has_capabilities()
    folders = (_existing(layout.root), _existing(cache_directory()))
    return Facts(
        system=os.uname().sysname,
        root=root,
        privileged=privileged,
        overlay=privileged and _can_mount_overlay(folders[0]),
        cgroups=privileged and _can_make_cgroup(),
        packages=not missing_packages() or shutil.which("apt-get") is not None,
        go=go_version(),
        go_needed=GO_NEEDED,
        compiled=not missing_binaries(),
        built=layout.images_report.exists(),
        free_gib=min(shutil.disk_usage(folder).free for folder in folders) / 2**30,
    )


def main() -> int:
    """Print the obstacle and return 1 if there is one."""
    reason = obstacle(gather())
    if reason is None:
        return 0
    print(sentence(reason), file=sys.stderr)
    return 1


def _existing(path: Path) -> Path:
    """Return the nearest folder above that exists."""
    return path if path.exists() else _existing(path.parent)


def _has_capabilities() -> bool:
    lines = Path("/proc/self/status").read_text().splitlines()
    effective = next(int(line.split()[1], 16) for line in lines if line.startswith("CapEff:"))
    return all(effective >> bit & 1 for bit in (_CAP_NET_ADMIN, _CAP_SYS_ADMIN))


def _can_mount_overlay(folder: Path) -> bool:
    with tempfile.TemporaryDirectory(dir=folder, prefix="finetune-preflight-") as scratch:
        lower, upper, work, merged = (Path(scratch) / name for name in ("lower", "upper", "work", "merged"))
        for path in (lower, upper, work, merged):
            path.mkdir()
        options = f"lowerdir={lower},upperdir={upper},workdir={work}"
        mount = ["mount", "-t", "overlay", "overlay", "-o", options, str(merged)]
        try:
            mounted = subprocess.run(mount, capture_output=True).returncode == 0
        except OSError:
            return False
        if mounted:
            subprocess.run(["umount", str(merged)], capture_output=True)
        return mounted


def _can_make_cgroup() -> bool:
    root = Path("/sys/fs/cgroup")
    group = (root if (root / "cgroup.controllers").exists() else root / "memory") / f"finetune-preflight-{os.getpid()}"
    try:
        group.mkdir()
    except OSError:
        return False
    with contextlib.suppress(OSError):
        group.rmdir()
    return True


if __name__ == "__main__":
    sys.exit(main())

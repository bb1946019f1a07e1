"""The Debian packages that the cluster needs on its machine; only those that are missing are installed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from lab.kubernetes.commands import run
from lab.kubernetes.errors import ClusterError
from lab.kubernetes.progress import step

_PACKAGES = {
    "containerd": "containerd",
    "runc": "runc",
    "/usr/lib/cni/bridge": "containernetworking-plugins",
    "buildah": "buildah",
    "debootstrap": "debootstrap",
    "docker-registry": "docker-registry",
    "nft": "nftables",
    "conntrack": "conntrack",
    "ip": "iproute2",
    "openssl": "openssl",
    "gcc": "gcc",
    "objdump": "binutils",
    "/usr/include/stdio.h": "libc6-dev",
    "umount": "mount",
    "setpriv": "util-linux",
}
"""A program (a command or a file) and the package that brings it."""


def ensure_packages() -> None:
    missing = missing_packages()
    if not missing:
        return
    if shutil.which("apt-get") is None:
        raise ClusterError(f"not a Debian machine; install what these Debian packages hold: {', '.join(missing)}")
    with step(f"install the Debian packages {' '.join(missing)}"):
        _apt_get("update")
        _apt_get("install", "--yes", "--no-install-recommends", *missing)


def missing_packages() -> list[str]:
    return [package for program, package in _PACKAGES.items() if not _present(program)]


def _present(program: str) -> bool:
    return Path(program).exists() if program.startswith("/") else shutil.which(program) is not None


def _apt_get(*arguments: str) -> None:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    command = ["apt-get", "-q", "-o", "DPkg::Lock::Timeout=300", *arguments]
    run(*command, environment=environment)

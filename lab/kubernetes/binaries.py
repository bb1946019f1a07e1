"""The Kubernetes programs: compiled from the Go modules in `tools/` once for each version, then found in a cache.

No release download is needed, only the Go module proxy. Programs of one module share their libraries and are compiled by
one `go build`, into a temporary folder from which each is renamed when it is whole. The Go caches (5 GB) stay beside the
programs, so that a program compiled later (the metrics server) compiles only its own packages; `down --purge` removes them.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import itertools
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lab.kubernetes.errors import ClusterError
from lab.kubernetes.progress import Step, step

TOOLS = Path(__file__).resolve().parent / "tools"

BUILD_DISK_GIB = 6
"""Free space that compiling everything needs: Go caches and programs."""

GO_NEEDED = (1, 25)
"""The `go` line of the modules in `tools/`."""

CONTROL_PLANE_BINARIES = ("etcd", "kube-apiserver", "kube-controller-manager")
"""Enough for `ControlPlane`: an API server without a node."""


@dataclass(frozen=True)
class Module:
    """A Go module of this repository, with a go.sum; its programs are compiled together."""

    directory: Path

    def version(self, path: str) -> str:
        """Return the version of a Go module that go.mod requires, with its leading v."""
        found = re.search(rf"^\s*(?:require\s+)?{re.escape(path)} (v\S+)", self._go_mod, flags=re.MULTILINE)
        if found is None:
            raise ClusterError(f"{self.directory}/go.mod does not require {path}")
        return found[1]

    @property
    def key(self) -> str:
        """The folder of the programs in the cache: named by everything that they are made from."""
        digest = hashlib.sha256()
        for file in sorted([*self.directory.glob("go.*"), *self.directory.glob("*/*.go")]):
            digest.update(f"{file.relative_to(self.directory)}\0".encode() + file.read_bytes() + b"\0")
        return f"{self.directory.name}-{digest.hexdigest()[:12]}"

    @property
    def _go_mod(self) -> str:
        return (self.directory / "go.mod").read_text()


_TOOLS = Module(TOOLS)
_S3 = Module(TOOLS / "versitygw")

KUBERNETES_VERSION = _TOOLS.version("k8s.io/kubernetes").removeprefix("v")
"""1.34 is the last release whose kubelet runs on cgroup v1 without a setting for it, and that supports containerd 1.6."""


@dataclass(frozen=True)
class Binary:
    """One program: the Go package of its `main` and the module that holds it."""

    module: Module
    package: str
    executable: str = ""
    """The file that `go build` makes; the program is a link to it. Empty where the file is named like the program."""


BINARIES: dict[str, Binary] = {
    "etcd": Binary(_TOOLS, "./etcd"),
    "kube-apiserver": Binary(_TOOLS, "./kubernetes", "kubernetes"),
    "kube-controller-manager": Binary(_TOOLS, "./kubernetes", "kubernetes"),
    "kubectl": Binary(_TOOLS, "./kubernetes", "kubernetes"),
    "kube-scheduler": Binary(_TOOLS, "./kubernetes", "kubernetes"),
    "kubelet": Binary(_TOOLS, "./kubernetes", "kubernetes"),
    "kube-proxy": Binary(_TOOLS, "./kubernetes", "kubernetes"),
    "coredns": Binary(_TOOLS, "./coredns"),
    "helm": Binary(_TOOLS, "helm.sh/helm/v3/cmd/helm"),
    "metrics-server": Binary(_TOOLS, "sigs.k8s.io/metrics-server/cmd/metrics-server"),
    "versitygw": Binary(_S3, "github.com/versity/versitygw/cmd/versitygw"),
}
"""Every program that can be compiled."""

CLUSTER_BINARIES = tuple(name for name in BINARIES if name not in ("metrics-server", "versitygw"))
"""The programs of the cluster. The metrics server is compiled for `kubectl top` and autoscalers, versitygw (S3) for tests."""


def cache_directory() -> Path:
    """Return the folder of artifacts that are keyed by a version, such as programs; all checkouts share it."""
    override = os.environ.get("FINETUNE_CACHE_DIR")
    if override:
        return Path(override)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "finetune-operator"


def binary_path(name: str) -> Path:
    """Return the program's path, whether it is compiled already or not."""
    return cache_directory() / "bin" / BINARIES[name].module.key / name


def missing_binaries(names: Iterable[str] = CLUSTER_BINARIES) -> list[str]:
    return [name for name in names if not binary_path(name).exists()]


def ensure_binaries(names: Iterable[str] = CLUSTER_BINARIES) -> None:
    """Compile the programs that the cache does not hold: minutes for the first run on a machine, no time after that."""
    wanted = list(names)
    if not missing_binaries(wanted):
        return
    with _build_lock():
        missing = missing_binaries(wanted)  # another process may have built them while this one waited
        if missing:
            _require_go_and_disk()
        for module, group in itertools.groupby(missing, key=lambda name: BINARIES[name].module):
            members = list(group)
            with step(f"compile {', '.join(members)}") as current:
                _build(module, members, current)


def search_path() -> str:
    """Return the folder of the compiled command-line tools, as a prefix for PATH."""
    return str(binary_path("kubectl").parent)


def go_version() -> tuple[int, int] | None:
    """Return the version of the installed compiler, None without one.

    `go version` prints `go version go1.26.8 linux/amd64`.
    """
    if shutil.which("go") is None:
        return None
    words = subprocess.run(["go", "version"], capture_output=True, text=True, check=True).stdout.split()
    major, minor = words[2].removeprefix("go").split(".")[:2]
    return int(major), int("".join(itertools.takewhile(str.isdigit, minor)))


@contextlib.contextmanager
def _build_lock() -> Iterator[None]:
    cache_directory().mkdir(parents=True, exist_ok=True)
    with (cache_directory() / "build.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with step("wait for another process that compiles the same programs"):
                fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _require_go_and_disk() -> None:
    found = go_version()
    if found is None or found < GO_NEEDED:
        what = "is not on PATH" if found is None else f"is {found[0]}.{found[1]}"
        raise ClusterError(f"the Go compiler {what}; the Kubernetes programs are compiled with Go 1.25 or newer")
    free = shutil.disk_usage(cache_directory()).free / 2**30
    if free < BUILD_DISK_GIB:
        raise ClusterError(
            f"compiling the Kubernetes programs needs {BUILD_DISK_GIB} GiB below {cache_directory()}, "
            f"only {free:.1f} GiB are free"
        )


def _build(module: Module, names: list[str], current: Step) -> None:
    target = cache_directory() / "bin" / module.key
    partial = target / ".partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    packages = list(dict.fromkeys(BINARIES[name].package for name in names))
    # `-v` prints a line for each compiled package, so that the step shows progress. Debug information would be stripped.
    command = ["nice", "-n", "5", "go", "build", "-v", "-trimpath", "-gcflags=all=-dwarf=false"]
    command += ["-ldflags", f"-s -w {_link_flags()}"]
    _run_go([*command, "-o", f"{partial}/", *packages], module.directory, current)
    for file in partial.iterdir():
        file.rename(target / file.name)
    partial.rmdir()
    for name in names:
        if BINARIES[name].executable:
            _link(target / name, BINARIES[name].executable)
    files = {(target / name).resolve() for name in names}
    current.note(f"{sum(file.stat().st_size for file in files) / 1e6:.0f} MB")


def _run_go(command: list[str], directory: Path, current: Step) -> None:
    log = _build_directory() / f"{directory.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as output:
        process = subprocess.Popen(
            command, cwd=directory, env=_go_environment(), stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
        )
        assert process.stderr is not None
        compiled = 0
        for line in process.stderr:
            output.write(line)
            compiled += not line.startswith(("go: ", "#", "\t"))
            current.detail = f"{compiled} packages compiled"
    if process.wait() != 0:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        raise ClusterError(f"`{' '.join(command[3:])}` failed ({log}):\n{tail}")


def _link(link: Path, executable: str) -> None:
    partial = link.with_name(f".{link.name}.partial")
    partial.unlink(missing_ok=True)
    partial.symlink_to(executable)
    partial.rename(link)


def _link_flags() -> str:
    """Stamp the versions into the programs, as the projects' own release builds do."""
    minor = KUBERNETES_VERSION.split(".")[1]
    values = {
        "k8s.io/component-base/version.gitVersion": f"v{KUBERNETES_VERSION}",
        "k8s.io/component-base/version.gitMajor": "1",
        "k8s.io/component-base/version.gitMinor": minor,
        "k8s.io/component-base/version.gitTreeState": "clean",
        "helm.sh/helm/v3/internal/version.version": _TOOLS.version("helm.sh/helm/v3"),
    }
    # `helm template` and `helm lint` assume this Kubernetes where they have no cluster to ask.
    for package in ("pkg/chartutil", "pkg/lint/rules"):
        values[f"helm.sh/helm/v3/{package}.k8sVersionMajor"] = "1"
        values[f"helm.sh/helm/v3/{package}.k8sVersionMinor"] = minor
    return " ".join(f"-X {name}={value}" for name, value in values.items())


def _build_directory() -> Path:
    return cache_directory() / "build"


def remove_build_caches() -> None:
    """Remove the Go caches; the compiled programs stay."""
    shutil.rmtree(_build_directory(), ignore_errors=True)


def _go_environment() -> dict[str, str]:
    """Return the user's Go settings (proxy, checksum database) with caches of this project's own."""
    return {
        **os.environ,
        "CGO_ENABLED": "0",
        "GOFLAGS": "-mod=readonly -modcacherw -buildvcs=false",
        "GOWORK": "off",
        "GOCACHE": str(_build_directory() / "go-build"),
        "GOMODCACHE": str(_build_directory() / "go-mod"),
        # The compiler's own garbage collection took a quarter of its processor time.
        "GOGC": os.environ.get("GOGC", "400"),
    }

"""The Kubernetes binaries: compiled from Go modules once for each version, then found in a cache.

No release download is needed, only the Go module proxy. A build goes to a temporary name and is renamed when it is
whole, one build runs at a time, and the Go caches (3 GB) live beside the binaries and are removed when all are built.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lab.kubernetes.errors import ClusterError
from lab.kubernetes.progress import say, step

KUBERNETES_VERSION = "1.34.4"
"""1.34 is the last release whose kubelet runs on cgroup v1 without being told to, and it still takes containerd 1.6."""

BUILD_DISK_GIB = 5
"""Free space that compiling everything needs; 0.6 GiB of it stays."""

GO_NEEDED = (1, 25)
"""The newest `go` line among the modules."""

CONTROL_PLANE_BINARIES = ("etcd", "kube-apiserver", "kube-controller-manager")
"""Enough for `ControlPlane`: an API server without a node."""


@dataclass(frozen=True)
class Source:
    """A Go module at a version, from which one or several binaries are compiled."""

    name: str
    """The folder of the cache, with the version."""
    module: str
    version: str
    """A Go module version, with its leading v."""
    link_flags: str = ""
    """What the project's own release build stamps into the binary."""
    uses_staging: bool = False
    """The module's own go.mod points at folders beside it (./staging); consumers must name the published versions."""


@dataclass(frozen=True)
class Binary:
    """One executable: the package of its `main` and the module that holds it."""

    source: Source
    package: str


_KUBERNETES_MINOR = KUBERNETES_VERSION.split(".")[1]
_KUBERNETES = Source(
    name="kubernetes",
    module="k8s.io/kubernetes",
    version=f"v{KUBERNETES_VERSION}",
    link_flags=" ".join(
        f"-X k8s.io/component-base/version.{name}={value}"
        for name, value in {
            "gitVersion": f"v{KUBERNETES_VERSION}",
            "gitMajor": "1",
            "gitMinor": _KUBERNETES_MINOR,
            "gitTreeState": "clean",
        }.items()
    ),
    uses_staging=True,
)
_ETCD = Source(name="etcd", module="go.etcd.io/etcd/server/v3", version="v3.6.16")
_COREDNS = Source(name="coredns", module="github.com/coredns/coredns", version="v1.15.0")
_HELM = Source(
    name="helm",
    module="helm.sh/helm/v3",
    version="v3.19.5",
    link_flags=" ".join(
        (
            "-X helm.sh/helm/v3/internal/version.version=v3.19.5",
            # `helm template` and `helm lint` assume this Kubernetes when they have no cluster to ask.
            f"-X helm.sh/helm/v3/pkg/chartutil.k8sVersionMajor=1 -X helm.sh/helm/v3/pkg/chartutil.k8sVersionMinor={_KUBERNETES_MINOR}",
            f"-X helm.sh/helm/v3/pkg/lint/rules.k8sVersionMajor=1 -X helm.sh/helm/v3/pkg/lint/rules.k8sVersionMinor={_KUBERNETES_MINOR}",
        )
    ),
)
_KUBECONFORM = Source(
    name="kubeconform", module="github.com/yannh/kubeconform", version="v0.7.0", link_flags="-X main.version=v0.7.0"
)
_METRICS_SERVER = Source(
    name="metrics-server",
    module="sigs.k8s.io/metrics-server",
    version="v0.9.0",
    link_flags="-X k8s.io/client-go/pkg/version.gitVersion=v0.9.0",
)
_VERSITYGW = Source(name="versitygw", module="github.com/versity/versitygw", version="v1.8.0")

BINARIES: dict[str, Binary] = {
    "etcd": Binary(_ETCD, "go.etcd.io/etcd/server/v3"),
    "kube-apiserver": Binary(_KUBERNETES, "k8s.io/kubernetes/cmd/kube-apiserver"),
    "kube-controller-manager": Binary(_KUBERNETES, "k8s.io/kubernetes/cmd/kube-controller-manager"),
    "kubectl": Binary(_KUBERNETES, "k8s.io/kubernetes/cmd/kubectl"),
    "kube-scheduler": Binary(_KUBERNETES, "k8s.io/kubernetes/cmd/kube-scheduler"),
    "kubelet": Binary(_KUBERNETES, "k8s.io/kubernetes/cmd/kubelet"),
    "kube-proxy": Binary(_KUBERNETES, "k8s.io/kubernetes/cmd/kube-proxy"),
    "coredns": Binary(_COREDNS, "github.com/coredns/coredns"),
    "helm": Binary(_HELM, "helm.sh/helm/v3/cmd/helm"),
    "kubeconform": Binary(_KUBECONFORM, "github.com/yannh/kubeconform/cmd/kubeconform"),
    "metrics-server": Binary(_METRICS_SERVER, "sigs.k8s.io/metrics-server/cmd/metrics-server"),
    "versitygw": Binary(_VERSITYGW, "github.com/versity/versitygw/cmd/versitygw"),
}
"""Everything that is compiled, in the order of the builds: what the API server tests need comes first."""

CLUSTER_BINARIES = tuple(name for name in BINARIES if name != "versitygw")
"""What the cluster and its tests need. versitygw is the S3 server of the trainer's tests."""


def cache_directory() -> Path:
    """Where compiled binaries and other artifacts that are keyed by a version live; shared by all checkouts."""
    override = os.environ.get("FINETUNE_CACHE_DIR")
    if override:
        return Path(override)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "finetune-operator"


def binary_path(name: str) -> Path:
    """Where the binary is, or will be once it is built."""
    source = BINARIES[name].source
    return cache_directory() / "bin" / f"{source.name}-{source.version}" / name


def missing_binaries(names: Iterable[str] = CLUSTER_BINARIES) -> list[str]:
    return [name for name in names if not binary_path(name).exists()]


def binaries_available(names: Iterable[str] = CONTROL_PLANE_BINARIES) -> bool:
    """Whether a test that needs these binaries can run now; it builds nothing."""
    return not missing_binaries(names)


def ensure_binaries(names: Iterable[str] = CLUSTER_BINARIES) -> None:
    """Compile what is not in the cache yet; minutes for the first run on a machine, no time after that."""
    wanted = list(names)
    if not missing_binaries(wanted):
        return
    with _build_lock():
        missing = missing_binaries(wanted)  # another process may have built them while this one waited
        if missing:
            _require_go_and_disk(missing)
        for number, name in enumerate(missing, start=1):
            with step(f"compile {name} {BINARIES[name].source.version} ({number} of {len(missing)})") as current:
                _build(name)
                current.note(f"{binary_path(name).stat().st_size / 1e6:.0f} MB")
        if not missing_binaries():
            _remove_build_leftovers()


def search_path() -> str:
    """The folders of the compiled command-line tools, as a prefix for PATH."""
    return os.pathsep.join(str(binary_path(name).parent) for name in ("kubectl", "helm", "kubeconform"))


@contextlib.contextmanager
def _build_lock() -> Iterator[None]:
    cache_directory().mkdir(parents=True, exist_ok=True)
    with (cache_directory() / "build.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with step("wait for another process that compiles the same binaries"):
                fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _require_go_and_disk(missing: list[str]) -> None:
    found = _go_version()
    if found is None or found < GO_NEEDED:
        what = "is not on PATH" if found is None else f"is {found[0]}.{found[1]}"
        raise ClusterError(f"the Go compiler {what}; the Kubernetes binaries are compiled with Go 1.25 or newer")
    free = shutil.disk_usage(cache_directory()).free / 2**30
    say(f"compiling {', '.join(missing)}: needs {BUILD_DISK_GIB} GiB of disk while it runs, {free:.0f} GiB are free")
    if free < BUILD_DISK_GIB:
        raise ClusterError(
            f"compiling the Kubernetes binaries needs {BUILD_DISK_GIB} GiB below {cache_directory()}, "
            f"only {free:.1f} GiB are free"
        )


def _go_version() -> tuple[int, int] | None:
    """Version of the installed compiler, or None without one. `go version` says `go version go1.26.8 linux/amd64`."""
    if shutil.which("go") is None:
        return None
    words = subprocess.run(["go", "version"], capture_output=True, text=True, check=True).stdout.split()
    major, minor = words[2].removeprefix("go").split(".")[:2]
    return int(major), int("".join(itertools.takewhile(str.isdigit, minor)))


def _build(name: str) -> None:
    binary = BINARIES[name]
    target = binary_path(name)
    target.parent.mkdir(parents=True, exist_ok=True)
    module_directory = _prepare_module(binary.source)
    partial = target.with_name(f".{name}.partial")
    # fmt: off
    command = [
        "nice", "-n", "5", "go", "build", "-mod=mod", "-trimpath", "-buildvcs=false",
        "-ldflags", f"-s -w {binary.source.link_flags}", "-o", str(partial), binary.package,
    ]
    # fmt: on
    log = module_directory / f"{name}.log"
    with log.open("wb") as output:
        result = subprocess.run(command, cwd=module_directory, env=_go_environment(), stdout=output, stderr=output)
    if result.returncode != 0:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        raise ClusterError(f"`go build {binary.package}` failed ({log}):\n{tail}")
    partial.rename(target)


def _prepare_module(source: Source) -> Path:
    """A throw-away Go module that requires the source's module at its version; `go build` fills in the rest."""
    directory = _build_directory() / f"{source.name}-{source.version}"
    directory.mkdir(parents=True, exist_ok=True)
    module_file = directory / "go.mod"
    if not module_file.exists():
        lines = ["module local.build", "", "go 1.24", "", f"require {source.module} {source.version}", ""]
        if source.uses_staging:
            lines += staging_replacements(_published_go_mod(source, directory), source.version)
        partial = directory / ".go.mod.partial"
        partial.write_text("\n".join(lines) + "\n")
        partial.rename(module_file)
        # `go build` wants an import that keeps the requirement alive; the package to build is named on its command line.
    return directory


def staging_replacements(go_mod: str, version: str) -> list[str]:
    """The `replace` lines that a consumer of k8s.io/kubernetes needs, read from that module's own go.mod.

    Kubernetes v1.N.P publishes its staging modules as v0.N.P; its own go.mod replaces exactly those by ./staging.
    """
    staged = re.findall(r"^\s*(?:replace\s+)?(\S+) => \./staging/src/\S+$", go_mod, flags=re.MULTILINE)
    published = "v0." + version.removeprefix("v1.")
    return [f"replace {module} => {module} {published}" for module in staged]


def _published_go_mod(source: Source, directory: Path) -> str:
    command = ["go", "mod", "download", "-json", f"{source.module}@{source.version}"]
    result = subprocess.run(command, cwd=directory, env=_go_environment(), capture_output=True, text=True)
    if result.returncode != 0:
        raise ClusterError(f"`{' '.join(command)}` failed: {result.stderr.strip() or result.stdout.strip()}")
    return Path(json.loads(result.stdout)["GoMod"]).read_text()


def _build_directory() -> Path:
    return cache_directory() / "build"


def _go_environment() -> dict[str, str]:
    """The user's Go settings (proxy, checksum database), with caches that can be thrown away after the builds."""
    return {
        **os.environ,
        "CGO_ENABLED": "0",
        "GOFLAGS": "",
        "GOWORK": "off",
        "GOCACHE": str(_build_directory() / "go-build"),
        "GOMODCACHE": str(_build_directory() / "go-mod"),
    }


def _remove_build_leftovers() -> None:
    """Modules are unpacked read-only, so `go` itself has to remove them."""
    with step("remove the Go caches of the builds"):
        subprocess.run(["go", "clean", "-modcache"], env=_go_environment(), check=False)
        shutil.rmtree(_build_directory(), ignore_errors=True)

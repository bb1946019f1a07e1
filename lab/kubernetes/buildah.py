"""Building and pushing images with buildah: no daemon, no Docker, the same Dockerfiles.

The build sees the machine's own package settings (extra certificate authorities, a pip or uv configuration) through
mounts, so that no Dockerfile has to know about them.
"""

from __future__ import annotations

import os
import subprocess
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

from lab.kubernetes.errors import ClusterError
from lab.kubernetes.layout import REGISTRY, Layout

_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
_PIP_SETTINGS = Path("/etc/pip.conf")

UV_CACHE_ID = "finetune-uv"
"""The id of the cache mount that the Dockerfiles give to uv."""


class Buildah:
    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.log = layout.root / "buildah.log"
        """Output of the last build."""

    def build(
        self,
        context: Path,
        dockerfile: Path,
        reference: str,
        arguments: Mapping[str, str],
        mounts: Mapping[Path, str] | None = None,
    ) -> None:
        """Build an image under a local name; reuse layers of earlier builds.

        Folders of `mounts` are visible at their path in all steps of the build.
        """
        command = ["bud", "--isolation=chroot", "--layers", "--tls-verify=false", "--format=oci"]
        for mount in self._mounts():
            command += ["--volume", mount]
        for folder, path in (mounts or {}).items():
            command += ["--volume", f"{folder}:{path}:ro"]
        for name, value in arguments.items():
            command += ["--build-arg", f"{name}={value}"]
        self._run(*command, "--file", str(dockerfile), "--tag", reference, str(context))

    def push(self, reference: str) -> None:
        """Push to the local registry; layers that it already has are not sent again.

        zstd packs torch's gigabyte in seconds on one core, gzip in a minute.
        """
        compression = ["--compression-format=zstd", "--compression-level=1"]
        self._run("push", "--quiet", "--tls-verify=false", *compression, reference)

    def run(self, reference: str, command: Sequence[str], mounts: Mapping[Path, str]) -> None:
        """Run a command in a container of the image, with these folders of the machine at these paths, writable."""
        container = f"run-{uuid.uuid4().hex[:8]}"
        self._run("from", "--pull=never", "--name", container, reference)
        try:
            volumes = [argument for folder, path in mounts.items() for argument in ("--volume", f"{folder}:{path}")]
            self._run("run", "--isolation=chroot", "--user=0:0", *volumes, container, "--", *command)
        finally:
            self._run("rm", container, check=False)

    def remove_unused(self) -> None:
        """Forget the layers of images that no tag names any more."""
        self._run("rmi", "--prune", check=False)

    def _share_uv_cache(self, scratch: Path) -> None:
        """Let the Dockerfiles' uv cache be this machine's: the same wheels (torch!) are there from the checkout's .venv.

        buildah keeps the cache mount called X in the folder buildah-cache/X of its temporary folder.
        """
        machine_cache = Path(os.environ.get("UV_CACHE_DIR") or Path.home() / ".cache" / "uv")
        machine_cache.mkdir(parents=True, exist_ok=True)
        link = scratch / "buildah-cache" / UV_CACHE_ID
        if not link.exists():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.unlink(missing_ok=True)
            link.symlink_to(machine_cache)

    def _mounts(self) -> list[str]:
        mounts = []
        if _CERTIFICATES.exists():
            mounts.append(f"{_CERTIFICATES}:{_CERTIFICATES}:ro")
        if _PIP_SETTINGS.exists():
            mounts.append(f"{_PIP_SETTINGS}:{_PIP_SETTINGS}:ro")
        # uv brings its own list of certificate authorities unless it is told to use the machine's.
        settings = self.layout.root / "uv.toml"
        settings.write_text("system-certs = true\n")
        mounts.append(f"{settings}:/etc/uv/uv.toml:ro")
        return mounts

    def _run(self, *arguments: str, check: bool = True) -> None:
        # fmt: off
        storage = [
            "--root", str(self.layout.buildah / "storage"),
            "--runroot", str(self.layout.node / "buildah"),
            "--storage-driver", "overlay",
        ]
        # fmt: on
        scratch = self.layout.buildah / "tmp"
        scratch.mkdir(parents=True, exist_ok=True)
        self._share_uv_cache(scratch)
        command = ["buildah", *storage, *arguments]
        with self.log.open("ab" if arguments[0] == "push" else "wb") as log:
            environment = {**os.environ, "TMPDIR": str(scratch)}
            result = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
        if check and result.returncode != 0:
            tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-20:])
            raise ClusterError(f"`buildah {arguments[0]}` failed ({self.log}):\n{tail}")


def local_reference(name: str, tag: str) -> str:
    return f"{REGISTRY}/{name}:{tag}"

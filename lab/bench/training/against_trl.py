"""`make bench-trl`: what our trainer's adapter answers, against one that TRL's SFTTrainer made from the same rows.

BANKING77: the intents of online-banking questions, as text. Both sides train one epoch on the same rows in the same optimizer
steps, with the same LoRA, learning rates, precision and seed; ours by `python -m finetune_trainer train`, TRL in an environment
of its own. Both adapters then answer held-out questions, under plain transformers and peft.
"""

import argparse
import csv
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_api.artifacts import DATASET_REPORT_FILE, RUN_RECORD_FILE
from finetune_trainer.batches.batching import StepSampler
from finetune_trainer.runtime.environment import prepare_environment
from lab.bench.training.workloads import BANKING77
from lab.figures import REPOSITORY, Figure, record
from lab.kubernetes.layout import default_layout
from lab.kubernetes.model import ensure_model

HERE = Path(__file__).parent
WORK = REPOSITORY / "build" / "bench-trl"
"""Rows, both configurations and both adapters of the last run."""
TRL_PYTHON = REPOSITORY / "build" / "trl-venv" / "bin" / "python"
"""Made by `make bench-trl` from the dependency group `trl`."""
TRL = "TRL's SFTTrainer"
THREADS = 2

Rows = list[dict[str, str]]


@dataclass(frozen=True)
class Work:
    """What a side trained on; both sides have to say the same."""

    steps: int
    tokens: int
    loss_tokens: int


@dataclass(frozen=True)
class Finished:
    """A process that ended well."""

    output: str
    seconds: float
    cpu_seconds: float


@dataclass(frozen=True)
class Side:
    """A trained adapter."""

    adapter: Path
    work: Work
    process: Finished


@dataclass(frozen=True)
class Grade:
    """What `grade.py` says of an adapter."""

    exact: float
    """Share of the questions whose greedy answer is the wanted text."""
    loss: float
    """Nats per token of the wanted answers."""


def main() -> int:
    """Train both, grade both, print and record; 1 if our adapter answers worse, 2 if there are no rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2000, help="rows to train on (default: %(default)s)")
    parser.add_argument("--held-out", type=int, default=500, help="questions to answer (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=16, help="rows per step (default: %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="its peak (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="chooses rows, their order and LoRA (default: %(default)s)")
    options = parser.parse_args()
    if not BANKING77.exists():
        print("BANKING77_CSV names no file (the training part of BANKING77, `text,category`)", file=sys.stderr)
        return 2
    started = time.monotonic()
    prepare_environment()
    os.environ["OMP_NUM_THREADS"] = str(THREADS)
    os.environ["HF_HUB_OFFLINE"] = "1"
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True)
    settings = {
        "model": str(without_chat_template(ensure_model(default_layout()))),
        "rank": 16,
        "alpha": 32,
        "batchSize": options.batch_size,
        "learningRate": options.learning_rate,
        "warmupRatio": 0.03,
        "maxLength": 256,
        "seed": options.seed,
    }
    training, held_out = choose_rows(options.rows, options.held_out, options.seed)
    questions = write_rows("held-out", held_out)
    ours, trl = train_ours(settings, training), train_trl(settings, training)
    if ours.work != trl.work:
        raise SystemExit(f"the sides did not train on the same: {ours.work} and {trl.work}")
    grades = [grade(settings, adapter, questions) for adapter in (ours.adapter, trl.adapter)]
    figures = to_figures(ours, trl, *grades, questions=len(held_out))
    path = record("training-trl", figures, time.monotonic() - started)
    for figure in figures:
        print(f"{figure.name:<64} {figure.value:>9} {figure.unit:<10}{'FALLS SHORT' if figure.falls_short else ''}")
    print(f"{time.monotonic() - started:.0f} s in all; recorded in {path.relative_to(REPOSITORY)}")
    return 1 if any(figure.falls_short for figure in figures) else 0


def choose_rows(training: int, held_out: int, seed: int) -> tuple[Rows, Rows]:
    """Disjoint rows, as prompt and completion."""
    with BANKING77.open(encoding="utf-8") as file:
        chosen = random.Random(seed).sample(list(csv.DictReader(file)), training + held_out)  # noqa: S311
    rows = [{"prompt": f"Question: {row['text']}\nIntent:", "completion": f" {row['category']}"} for row in chosen]
    return rows[:training], rows[training:]


def write_rows(name: str, rows: Rows) -> Path:
    """As JSON Lines."""
    path = WORK / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def without_chat_template(model: Path) -> Path:
    """The same model, with which both sides take prompts and completions as they are: half the tokens of a chat."""
    plain = WORK / "model"
    plain.mkdir()
    for file in model.iterdir():
        if file.name != "chat_template.jinja":
            (plain / file.name).symlink_to(file)
    return plain


def train_ours(settings: dict[str, Any], training: Rows) -> Side:
    """By the command that anyone would use."""
    hyperparameters = ("batchSize", "learningRate", "warmupRatio", "maxLength", "seed")
    config = {
        "model": {"path": settings["model"]},
        "dataset": {"path": str(write_rows("train", training))},
        "lora": {"rank": settings["rank"], "alpha": settings["alpha"]},
        "hyperparameters": {
            "epochs": 1,
            "precision": "float32",
            "schedule": "linear",
            **{name: settings[name] for name in hyperparameters},
        },
        "output": {"directory": str(WORK / "ours"), "adapterName": "intents"},
    }
    path = write_json("ours", config)
    process = run("ours", [sys.executable, "-m", "finetune_trainer", "train", str(path), "--run-id", "bench"])
    adapter = WORK / "ours" / "intents" / "bench"
    seen = json.loads((adapter / DATASET_REPORT_FILE).read_text())["training"]
    steps = json.loads((adapter / RUN_RECORD_FILE).read_text())["steps"]
    return Side(adapter, Work(steps, seen["tokens"], seen["lossTokens"]), process)


def train_trl(settings: dict[str, Any], training: Rows) -> Side:
    """By SFTTrainer, which gets the rows in the order in which ours are trained on."""
    order = StepSampler([0] * len(training), settings["batchSize"], settings["seed"])
    rows = write_rows("train-in-order", [training[index] for index in order])
    adapter = WORK / "trl"
    path = write_json("trl", {**settings, "rows": str(rows), "output": str(adapter)})
    process = run(TRL, [str(TRL_PYTHON), str(HERE / "sft_trainer.py"), str(path)])
    return Side(adapter, Work(**json.loads(process.output)), process)


def grade(settings: dict[str, Any], adapter: Path, questions: Path) -> Grade:
    """Answers to the held-out questions, in the environment without our code."""
    command = [str(TRL_PYTHON), str(HERE / "grade.py"), settings["model"], str(adapter), str(questions)]
    return Grade(**json.loads(run("  its answers", command).output))


def write_json(name: str, document: dict[str, Any]) -> Path:
    """Beside what comes of it, to be looked at."""
    path = WORK / f"{name}.json"
    path.write_text(json.dumps(document, indent=2) + "\n")
    return path


def run(name: str, command: Sequence[str]) -> Finished:
    """One process after the other: each has the machine for itself. `output` is its last line."""
    print(f"{name} ...", end=" ", flush=True)
    started, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    finished = Finished(done.stdout.splitlines()[-1], time.monotonic() - started, cpu)
    print(f"{finished.seconds:.0f} s ({cpu:.0f} s of CPU)", flush=True)
    return finished


def to_figures(ours: Side, trl: Side, our_grade: Grade, trl_grade: Grade, *, questions: int) -> list[Figure]:
    """Answers first, then what they cost."""
    percent = [round(100 * grade.exact, 1) for grade in (our_grade, trl_grade)]
    of = f"of {questions} held-out questions exactly right"
    return [
        Figure(f"{of}, ours", percent[0], "%", "higher", must=percent[1], peer=TRL),
        Figure(f"{of}, {TRL}", percent[1], "%", "higher"),
        Figure("held-out loss, ours", round(our_grade.loss, 4), "nats", "lower", peer=TRL),
        Figure(f"held-out loss, {TRL}", round(trl_grade.loss, 4), "nats", "lower"),
        Figure("optimizer steps of each", ours.work.steps, "steps", "higher"),
        Figure("tokens of each", ours.work.tokens, "tokens", "higher"),
        Figure("whole run, ours", round(ours.process.seconds), "s", "lower"),
        Figure(f"whole run, {TRL}", round(trl.process.seconds), "s", "lower"),
        Figure(
            "whole run: speed", round(trl.process.seconds / ours.process.seconds, 2), "x", "higher", must=1, peer=TRL
        ),
        Figure(
            "whole run: CPU time", round(ours.process.cpu_seconds / trl.process.cpu_seconds, 2), "x", "lower", peer=TRL
        ),
    ]


if __name__ == "__main__":
    sys.exit(main())

"""A manifest of a tiny job, and the command `finetune run` as a process."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lab.fixtures.tiny_model import as_jsonl, chat_rows


def a_job(**spec: Any) -> dict[str, Any]:
    """Four steps on inline rows; `spec` replaces whole sections."""
    document: dict[str, Any] = {
        "model": {"source": "pvc://models/tiny"},
        "dataset": {"inline": as_jsonl(chat_rows(8))},
        "hyperparameters": {"epochs": 2, "batchSize": 4, "learningRate": 0.01},
    }
    document.update(spec)
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FinetuneJob",
        "metadata": {"name": "tone"},
        "spec": {key: value for key, value in document.items() if value is not None},
    }


def write_manifest(path: Path, *documents: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump_all(documents))
    return path


@dataclass
class Command:
    """`finetune run` on one manifest in one work directory."""

    manifest: Path
    work: Path
    arguments: list[str]
    started: list["subprocess.Popen[str]"] = field(default_factory=list)

    def start(self, *more: str) -> "subprocess.Popen[str]":
        line = [sys.executable, "-m", "finetune_cli", "run", str(self.manifest), f"--work-dir={self.work}"]
        environment = {**os.environ, "COLUMNS": "200"}
        process = subprocess.Popen(
            [*line, *self.arguments, *more],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )
        self.started.append(process)
        return process

    def run(self, *more: str) -> tuple[int, str]:
        process = self.start(*more)
        output, _ = process.communicate(timeout=280)
        return process.returncode, output

    @property
    def status(self) -> dict[str, Any]:
        path = self.work / "objects" / "finetunejobs" / "default" / "tone.json"
        status: dict[str, Any] = json.loads(path.read_text()).get("status", {}) if path.exists() else {}
        return status

    def condition(self, kind: str) -> dict[str, Any]:
        return next((c for c in self.status.get("conditions", []) if c["type"] == kind), {})

    def wait_for(self, what: str, happened: Callable[[], bool], seconds: float = 200) -> None:
        deadline = time.monotonic() + seconds
        while not happened():
            assert time.monotonic() < deadline, f"{what}: {self.status}"
            time.sleep(0.05)

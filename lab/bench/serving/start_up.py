"""From the start of the server's process until it is ready, over what no server can go without: its imports and the weights."""

import re
import subprocess
import sys
import time
from pathlib import Path

from lab.bench.serving.over_http import server
from lab.bench.serving.workload import WORK
from lab.figures import Figure

FLOOR = "imports + reading the weights"
ROUNDS = 3

_FLOOR_PROCESS = """
import contextlib, importlib, sys
for name in open(sys.argv[2]).read().split():
    with contextlib.suppress(Exception):
        importlib.import_module(name)
with open(sys.argv[1], "rb", buffering=0) as weights:
    while weights.read(1 << 24):
        pass
print("done", flush=True)
"""


def measure(model: Path) -> list[Figure]:
    """Both in turns, the files warm in memory; the fastest round of each counts."""
    modules = imported_modules(model)
    ready, floor = [], []
    for number in range(ROUNDS):
        floor.append(seconds_of_floor(model, modules))
        ready.append(seconds_to_ready(model))
        print(f"  start-up {number + 1} of {ROUNDS}: ready {ready[-1]:.1f} s, floor {floor[-1]:.1f} s", flush=True)
    ratios = [a / b for a, b in zip(ready, floor, strict=True)]
    return [
        Figure(
            f"process start -> ready / {FLOOR}", round(min(ready) / min(floor), 2), "x", "lower", 1.8, 1.25, FLOOR,
            [round(min(ratios), 2), round(max(ratios), 2)],
        ),
        Figure("process start -> ready", round(min(ready), 2), "s", "lower"),
    ]  # fmt: skip


def imported_modules(model: Path) -> list[str]:
    """What the server has imported by the time it is ready, in this order."""
    log = WORK / "server.log"
    with server(model, {}, PYTHONPROFILEIMPORTTIME="1"):
        lines = log.read_text(errors="replace").splitlines()
    found = [re.fullmatch(r"import time: +\d+ \| +\d+ \| +(\S+)", line) for line in lines]
    return [match[1] for match in found if match]


def seconds_to_ready(model: Path) -> float:
    """From the start of the process to the first 200 of /readyz."""
    started = time.perf_counter()
    with server(model, {}):
        return time.perf_counter() - started


def seconds_of_floor(model: Path, modules: list[str]) -> float:
    """A process that imports the same and reads the weights' file, up to the moment when it has."""
    names = WORK / "imports.txt"
    names.write_text("\n".join(modules))
    command = [sys.executable, "-c", _FLOOR_PROCESS, str(model / "model.safetensors"), str(names)]
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout
        assert process.stdout.readline() == b"done\n"
        return time.perf_counter() - started

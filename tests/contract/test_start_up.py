"""Operator and gateway start fast and stay light: both are restarted often, and neither may ever pull in torch."""

import resource
import subprocess
import sys
import time

import pytest

from lab.figures import Figure, record

RUNS = 5
"""Imports per module; the median counts."""
HEAVY = ("torch", "transformers", "peft", "datasets", "celery")


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("finetune_operator.main", (*HEAVY, "fastapi")),
        ("finetune_gateway.app", (*HEAVY, "kubernetes")),
    ],
)
def test_the_control_plane_imports_nothing_heavy(module: str, forbidden: tuple[str, ...]) -> None:
    loaded = run(f"import sys, {module}; print(' '.join(sys.modules))").split()
    assert not set(forbidden) & set(loaded)


def test_operator_and_gateway_are_imported_within_their_bounds() -> None:
    started = time.monotonic()
    figures = [
        measure("seconds to import the operator", "finetune_operator.main", must=2.5),
        measure("seconds to import the gateway", "finetune_gateway.app", must=1.5),
    ]
    record("imports", figures, time.monotonic() - started)
    assert not [f for f in figures if f.falls_short]


def measure(name: str, module: str, must: float) -> Figure:
    """Median of the CPU time of a fresh interpreter that imports `module`, less that of one that imports nothing."""
    bare = sorted(cpu_seconds("pass") for _ in range(RUNS))[RUNS // 2]
    times = sorted(cpu_seconds(f"import {module}") - bare for _ in range(RUNS))
    spread = [round(times[0], 2), round(times[-1], 2)]
    return Figure(name, round(times[RUNS // 2], 2), "CPU s", "lower", must=must, spread=spread)


def cpu_seconds(code: str) -> float:
    """An import computes and reads cached files: its CPU time is its wall time on an idle core, on a busy one it is fair."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run(code)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime)


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

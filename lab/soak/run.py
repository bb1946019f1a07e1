"""Overloads, abandons and confuses a real server for some minutes: `make soak-server`.

Writes build/figures/soak-server.json; ends with 1 when a bound is missed.
"""

import asyncio
import socket
import statistics
import sys
import time

from lab import figures
from lab.figures import Figure
from lab.kubernetes.layout import default_layout
from lab.kubernetes.model import ensure_model
from lab.soak.soak import RUNNING, WAITING, Plan, Seen, run, server

FULL = Plan(
    answer_tokens=16,
    longest=8192,
    overload_seconds=60,
    slow_readers=16,
    abandoned=1000,
    giants=1,
    random_requests=2000,
    steady_seconds=160,
    draining=8,
)


def main() -> int:
    """Entry point."""
    started = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    log = figures.REPOSITORY / "build" / "soak-server.log"
    log.parent.mkdir(exist_ok=True)
    with server(ensure_model(default_layout()), port, log) as process:
        seen = asyncio.run(run(FULL, port, process, lambda line: print(line, flush=True)))
    for problem in sorted(set(seen.problems)):
        print(f"problem: {problem}")
    found = _figures(FULL, seen)
    path = figures.record("soak-server", found, time.monotonic() - started)
    for figure in found:
        print(f"{figure.name:<72} {figure.value:>9} {figure.unit:<9}{'FALLS SHORT' if figure.falls_short else ''}")
    print(
        f"figures are in {path.relative_to(figures.REPOSITORY)}, the server's log is {log.relative_to(figures.REPOSITORY)}"
    )
    return int(any(figure.falls_short for figure in found))


def _figures(plan: Plan, seen: Seen) -> list[Figure]:
    places = (RUNNING + WAITING) / seen.capacity
    requests = len(seen.refused) + len(seen.accepted)
    return [
        Figure("crashes, undeclared statuses and broken answers", float(len(seen.problems)), "answers", "lower", 0, 0),
        Figure(
            f"refusal p99, of {len(seen.refused)} of {requests} at 10x load", _p99(seen.refused), "s", "lower", 1, 0.1
        ),
        Figure(
            f"answer p99, of {len(seen.accepted)} accepted at 10x load / all places served in turn",
            round(_p99(seen.accepted) / places, 2),
            "x",
            "lower",
            2,
            1.3,
        ),
        Figure("answers under 10x load / capacity", _throughput(plan, seen), "x", "higher", 0.6, 0.9),
        Figure("streams hung up on", float(seen.abandoned), "streams", "higher", plan.abandoned),
        Figure("idle after the last hang-up", round(seen.idle_after_abandoned, 2), "s", "lower", 5, 1),
        Figure("sequences and cached tokens left at the end", sum(seen.left.values()), "left", "lower", 0, 0),
        Figure("memory slope in the steady phase", round(seen.slope, 2), "MiB/min", "lower", 20, 2),
        Figure("memory, from the first requests to the end", round(seen.growth, 1), "MiB", "lower", 400, 100),
        Figure(f"whole answers of {plan.draining} at SIGTERM", float(seen.drained), "answers", "higher", plan.draining),
        Figure("new requests turned away while they end", float(seen.turned_away), "yes", "higher", 1),
        Figure("exit status", float(-1 if seen.exit_status is None else seen.exit_status), "", "lower", 0),
    ]


def _throughput(plan: Plan, seen: Seen) -> float:
    """Answers per second under overload over the capacity; what waits when the load ends is answered later."""
    seconds = plan.overload_seconds + max(seen.accepted) / 2
    return round(len(seen.accepted) / seconds / seen.capacity, 2)


def _p99(seconds: list[float]) -> float:
    return round(statistics.quantiles(seconds, n=100)[98], 3)


if __name__ == "__main__":
    sys.exit(main())

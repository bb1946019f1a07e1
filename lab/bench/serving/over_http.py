"""The server as a process of its own, and clients that ask it over HTTP as `openai` does."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from lab.bench.serving.workload import CONCURRENT, THREADS, WORK, Ask

START_SECONDS = 180
LIST = WORK / "adapters.json"
"""The list of adapters that the server watches."""


@dataclass
class Reply:
    """What one request got."""

    tokens: int = 0
    first_token_seconds: float = 0.0
    problem: str | None = None


@dataclass
class Server:
    """A running server."""

    url: str
    process: "subprocess.Popen[bytes] | None"
    """None if it is not ours to end."""
    client: httpx.AsyncClient = field(init=False)

    async def answer(self, requests: Sequence[Ask], concurrent: int = CONCURRENT) -> list[Reply]:
        """All requests, so many at a time; streamed."""
        turns = asyncio.Semaphore(concurrent)

        async def one(ask: Ask) -> Reply:
            async with turns:
                return await self.ask(ask)

        async with self.connected():
            return list(await asyncio.gather(*[one(ask) for ask in requests]))

    def connected(self) -> httpx.AsyncClient:
        """A client for a block; `ask` uses it."""
        limits = httpx.Limits(max_connections=None)
        self.client = httpx.AsyncClient(base_url=self.url, timeout=600, limits=limits)
        return self.client

    async def ask(self, ask: Ask, since: float | None = None) -> Reply:
        """One streamed completion; its time counts from `since` (of `time.perf_counter`), or from now."""
        body = {
            "model": ask.adapter or "base",
            "prompt": ask.prompt,
            "max_tokens": ask.tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        reply = Reply()
        started = time.perf_counter() if since is None else since
        async with self.client.stream("POST", "/v1/completions", json=body) as response:
            if response.status_code != httpx.codes.OK:
                await response.aread()
                reply.problem = f"{response.status_code} {response.text[:200]}"
                return reply
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    _take(reply, json.loads(line.removeprefix("data: ")), started)
        if reply.problem is None and not reply.tokens:
            reply.problem = "the stream ended without its usage"
        return reply


def _take(reply: Reply, chunk: dict, started: float) -> None:  # type: ignore[type-arg]
    if "error" in chunk:
        reply.problem = str(chunk["error"])
        return
    if not reply.first_token_seconds:
        reply.first_token_seconds = time.perf_counter() - started
    if chunk.get("usage"):
        reply.tokens = chunk["usage"]["completion_tokens"]


@contextmanager
def server(model: Path, adapters: dict[str, Path], **variables: str) -> Iterator[Server]:
    """`python -m finetune_inference` until the block ends; `variables` are added to its environment."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    publish(adapters)
    environment = {
        **os.environ,
        "FINETUNE_SERVER_THREADS": str(THREADS),
        "FINETUNE_SERVER_MAX_RUNNING": str(CONCURRENT),
        "FINETUNE_SERVER_MAX_WAITING": "1024",
        "FINETUNE_SERVER_ADAPTERS_PATH": str(LIST),
        **variables,
    }
    command = [sys.executable, "-m", "finetune_inference", "--model", str(model), "--name", "base"]
    with (WORK / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)], env=environment, stdout=log, stderr=log
        )
    try:
        found = Server(f"http://127.0.0.1:{port}", process)
        _wait_ready(found.url, process)
        yield found
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)


def publish(adapters: dict[str, Path]) -> None:
    """Replace the list of adapters."""
    WORK.mkdir(parents=True, exist_ok=True)
    scratch = LIST.with_suffix(".new")
    scratch.write_text(json.dumps({"adapters": [{"name": n, "path": str(p)} for n, p in adapters.items()]}))
    scratch.rename(LIST)


def _wait_ready(url: str, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"{url}/readyz").status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            pass
        if process.poll() is not None:
            raise SystemExit(f"the server ended; see {WORK / 'server.log'}")
        time.sleep(0.1)
    raise SystemExit("the server did not become ready")

"""HTTP as a rude client speaks it: one connection per request, any bytes, read slowly, hung up at any moment."""

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import Any

LATE = 600
"""Seconds after which a server counts as hung; far more than any answer takes, also on a busy machine."""


@dataclass
class Answer:
    """What came back; status 0 is a connection that was refused or closed without an answer."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    seconds: float = 0.0
    """From the scheduled time to the last byte."""

    @property
    def is_complete(self) -> bool:
        """Whether the body ends as its headers promise."""
        if "content-length" in self.headers:
            return len(self.body) == int(self.headers["content-length"])
        return self.body.endswith(b"0\r\n\r\n")


def completion(prompt: list[int] | str, max_tokens: int, **more: Any) -> bytes:
    """The body of a request."""
    return json.dumps({"model": "base", "prompt": prompt, "max_tokens": max_tokens, **more}).encode()


class Client:
    """Asks one server."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def ask(self, body: bytes, path: str = "/v1/completions", since: float | None = None) -> Answer:
        """One whole exchange."""
        began = time.monotonic() if since is None else since
        answer = Answer()
        try:
            reader, writer = await self.send(body, path)
            try:
                await self._read_head(reader, answer)
                async with asyncio.timeout(LATE):
                    answer.body = await reader.read()
            finally:
                writer.close()
        except OSError:
            pass
        answer.seconds = time.monotonic() - began
        return answer

    async def get(self, path: str) -> Answer:
        """One GET."""
        return await self.ask(b"", path)

    async def abandon(self, body: bytes, seconds: float) -> Answer | None:
        """Ask, and hang up after some seconds, whatever has come until then; the answer if it had ended by then."""
        answer = Answer()
        try:
            reader, writer = await self.send(body)
            try:
                async with asyncio.timeout(seconds):
                    await self._read_head(reader, answer)
                    answer.body = await reader.read()
            except TimeoutError:
                return None
            finally:
                writer.transport.abort()
        except OSError:
            pass
        return answer

    async def read_slowly(self, body: bytes, pause: float) -> Answer:
        """Take a few bytes at a time."""
        answer = Answer()
        reader, writer = await self.send(body)
        await self._read_head(reader, answer)
        async with asyncio.timeout(LATE):
            while part := await reader.read(512):
                answer.body += part
                await asyncio.sleep(pause)
        writer.close()
        return answer

    async def send(
        self, body: bytes, path: str = "/v1/completions"
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Send a request; the connection ends with its answer."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        method = "POST" if body else "GET"
        head = f"{method} {path} HTTP/1.1\r\nHost: soak\r\nConnection: close\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        await writer.drain()
        return reader, writer

    async def _read_head(self, reader: asyncio.StreamReader, answer: Answer) -> None:
        try:
            async with asyncio.timeout(LATE):
                head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return
        first, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
        answer.headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        answer.status = int(first.split()[1])

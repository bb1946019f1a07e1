"""A proxy between one client and the API server that answers some requests itself, before or after they have taken effect."""

import asyncio
import json
import ssl
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from aiohttp import web

from lab.kubernetes.api import write_kubeconfig
from lab.kubernetes.controlplane import ControlPlane

HTML = b"<html><head><title>Sign in</title></head><body>Your session has expired.</body></html>"


@dataclass(frozen=True)
class Fault:
    """A reply in the place of the API server's."""

    name: str
    status: int = 200
    body: bytes = HTML
    content_type: str = "text/html"
    cut: int | None = None
    """Only the first so many bytes of the true reply arrive, in a complete HTTP message."""
    is_after: bool = False
    """The request takes effect; the client only does not learn of it."""


STATUS = {"kind": "Status", "apiVersion": "v1", "message": "played", "reason": "Played"}
FAULTS = (
    Fault("html"),
    Fault("html after the write", is_after=True),
    Fault("empty", body=b""),
    Fault("empty after the write", body=b"", is_after=True),
    Fault("truncated", cut=60, is_after=True),
    Fault("another kind", body=b'{"kind": "Namespace", "metadata": {}}', content_type="application/json"),
    Fault("a list", body=b"[]", content_type="application/json"),
    Fault("html 404", status=404),
    Fault("html 409 after the write", status=409, is_after=True),
    Fault("html 403", status=403),
    Fault("html 422", status=422),
    Fault("redirect", status=302),
    Fault("500", status=500, body=json.dumps({**STATUS, "code": 500}).encode(), content_type="application/json"),
    Fault("503 html", status=503),
    Fault("429", status=429, body=json.dumps({**STATUS, "code": 429}).encode(), content_type="application/json"),
)

Plan = Callable[[str, str, int], Fault | None]
"""The fault for a request, by its method (WATCH for watches), its path, and its number."""


def healthy(method: str, path: str, number: int) -> None:
    """Leave all requests alone."""


class FaultProxy:
    """Runs in a thread, listens on loopback without TLS, and speaks to the API server as one user."""

    def __init__(self, plane: ControlPlane, user: str, directory: Path) -> None:
        self._plane = plane
        pair = plane.authority.issue_client(f"{user}-proxy", user, ())
        self._tls = ssl.create_default_context(cafile=str(plane.ca_file))
        self._tls.load_cert_chain(pair.certificate, pair.key)
        self._file = directory / "proxy.kubeconfig"
        self.plan: Plan = healthy
        self.played: Counter[str] = Counter()
        self.requests: Counter[str] = Counter()
        self._number = 0
        self._port = 0
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="fault-proxy")
        self._streams: set[web.StreamResponse] = set()

    @property
    def kubeconfig(self) -> Path:
        return write_kubeconfig(self._file, f"http://127.0.0.1:{self._port}", self._plane.ca_file, {"token": "unused"})

    @contextmanager
    def running(self) -> Iterator["FaultProxy"]:
        self._thread.start()
        assert self._started.wait(10)
        try:
            yield self
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(10)

    def cut_watches(self) -> None:
        """End all watches in the middle of a line."""

        async def cut() -> None:
            for stream in list(self._streams):
                await stream.write(b'{"type": "MODIFIED", "object": {"kind": ')
                await stream.write_eof()
                self._streams.discard(stream)

        asyncio.run_coroutine_threadsafe(cut(), self._loop).result(10)

    def send_to_watches(self, line: bytes) -> None:
        """Put a line into all watches."""

        async def send() -> None:
            for stream in list(self._streams):
                await stream.write(line + b"\n")

        asyncio.run_coroutine_threadsafe(send(), self._loop).result(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._start())
        self._started.set()
        self._loop.run_forever()
        self._loop.run_until_complete(self._session.close())

    async def _start(self) -> None:
        connector = aiohttp.TCPConnector(limit=0, ssl=self._tls)
        self._session = aiohttp.ClientSession(connector=connector, auto_decompress=False)
        app = web.Application(client_max_size=1 << 24)
        app.router.add_route("*", "/{path:.*}", self._handle)
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        assert site._server is not None
        self._port = site._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        is_watch = request.query.get("watch") in ("1", "true")
        method = "WATCH" if is_watch else request.method
        self._number += 1
        self.requests[method] += 1
        fault = self.plan(method, request.path, self._number)
        if fault is not None:
            self.played[fault.name] += 1
            if not fault.is_after or is_watch:
                return _answer(fault, b"")
        headers = {k: v for k, v in request.headers.items() if k.lower() in ("accept", "content-type")}
        url = self._plane.url + request.path_qs
        async with self._session.request(
            request.method, url, data=await request.read(), headers=headers, timeout=aiohttp.ClientTimeout(total=None)
        ) as upstream:
            if is_watch:
                return await self._relay(request, upstream)
            body = await upstream.read()
            if fault is not None:
                return _answer(fault, body)
            return web.Response(status=upstream.status, body=body, headers=_type(upstream))

    async def _relay(self, request: web.Request, upstream: aiohttp.ClientResponse) -> web.StreamResponse:
        response = web.StreamResponse(status=upstream.status, headers=_type(upstream))
        await response.prepare(request)
        # Otherwise aiohttp would keep the headers until there is an event.
        await response.write(b"\n")
        self._streams.add(response)
        try:
            async for chunk in upstream.content.iter_any():
                if response not in self._streams:
                    break
                await response.write(chunk)
        finally:
            self._streams.discard(response)
        return response


def _type(upstream: aiohttp.ClientResponse) -> dict[str, str]:
    return {"Content-Type": upstream.headers.get("Content-Type", "application/json")}


def _answer(fault: Fault, body: bytes) -> web.Response:
    if fault.status == 302:
        return web.Response(status=302, headers={"Location": "https://login.example/"})
    body = fault.body if fault.cut is None else body[: fault.cut]
    return web.Response(status=fault.status, body=body, headers={"Content-Type": fault.content_type})

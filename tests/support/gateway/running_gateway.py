"""The gateway as users meet it, a real server on a loopback port; and a stand-in for the API server that remembers
requests."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import uvicorn

from finetune_gateway.app import create_app
from finetune_gateway.settings import Settings

START_SECONDS = 20
"""Far more than a start takes on an idle machine."""


@contextmanager
def running_gateway(api_url: str, ca_file: Path | None = None, **settings: Any) -> Iterator[httpx.Client]:
    """A client of a gateway that talks to this API server."""
    app = create_app(Settings(api_url=api_url, ca_file=ca_file, **settings))
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None, access_log=False))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + START_SECONDS
    while not server.started:
        assert thread.is_alive(), "the gateway ended while it started"
        assert time.monotonic() < deadline, f"the gateway did not start within {START_SECONDS} s"
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=30) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()


@dataclass
class Seen:
    """One request that the stand-in received."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: Any


@dataclass
class ApiServerStandIn:
    """The few paths of the API server that the gateway uses, without schema, authentication or authorization."""

    objects: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    seen: list[Seen] = field(default_factory=list)
    refusal: tuple[int, bytes] | None = None
    """Answer everything like this instead."""
    delay: float = 0.0
    """Seconds before each answer."""
    url: str = ""

    def refuse(self, status: int, **answer: Any) -> None:
        """Answer everything with this metav1.Status."""
        self.refusal = (status, json.dumps({"kind": "Status", "code": status, **answer}).encode())

    def answer(self, request: Seen) -> tuple[int, bytes]:
        """What the API server says; remembers the request."""
        self.seen.append(request)
        time.sleep(self.delay)
        if self.refusal is not None:
            return self.refusal
        if request.path == "/readyz":
            return 200, b"ok"
        parts = request.path.strip("/").split("/")
        namespace, name = parts[4], parts[6] if len(parts) > 6 else None
        status, answer = self._object(request, namespace, name) if name else self._collection(request, namespace)
        return status, json.dumps(answer).encode()

    def _collection(self, request: Seen, namespace: str) -> tuple[int, Any]:
        if request.method == "GET":
            items = [o for (where, _), o in sorted(self.objects.items()) if where == namespace]
            start, limit = int(request.query.get("continue", ["0"])[0]), int(request.query["limit"][0])
            more = {"continue": str(start + limit)} if len(items) > start + limit else {}
            return 200, {"items": items[start : start + limit], "metadata": more}
        key = (namespace, request.body["metadata"]["name"])
        if key in self.objects:
            return 409, {"reason": "AlreadyExists", "details": {"name": key[1], "kind": "finetunejobs"}}
        self.objects[key] = json.loads(json.dumps(request.body))
        self.objects[key]["metadata"]["creationTimestamp"] = "2026-01-01T00:00:00Z"
        return 201, self.objects[key]

    def _object(self, request: Seen, namespace: str, name: str) -> tuple[int, Any]:
        found = self.objects.get((namespace, name))
        if found is None:
            return 404, {"reason": "NotFound", "details": {"name": name, "kind": "finetunejobs"}}
        if request.method == "PATCH":
            found["spec"] |= request.body["spec"]
        return 200, found


@contextmanager
def api_server_stand_in() -> Iterator[ApiServerStandIn]:
    """A stand-in on a free loopback port."""
    stand_in = ApiServerStandIn()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            url = urlsplit(self.path)
            status, answer = stand_in.answer(
                Seen(self.command, url.path, parse_qs(url.query), dict(self.headers.items()), body)
            )
            self.send_response(status)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_GET = do_POST = do_PATCH = do_DELETE = _serve  # noqa: N815 - the base class's names

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    stand_in.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield stand_in
    finally:
        server.shutdown()
        server.server_close()

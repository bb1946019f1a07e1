"""An endpoint on loopback that speaks just enough of /v1/completions to be probed: one behaviour per namespace."""

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from finetune_api.fingerprint import Fingerprint, Probe

Answer = tuple[int, dict[str, Any]]
Behaviour = Callable[[dict[str, Any]], Answer]

TUNED = [-0.1, -0.2, -0.3]
BASE = [-1.1, -1.2, -1.3]
FINGERPRINT = Fingerprint(probes=[Probe(token_ids=[1, 2, 3, 4, 5], prompt_tokens=2, tuned=TUNED, base=BASE)])
"""Two prompt tokens, three scored ones; an effect of one nat per token."""


def scores(values: list[float]) -> Answer:
    return 200, {"choices": [{"logprobs": {"token_logprobs": [None, -5.0, *values]}}]}


def serving(adapter: str, tuned: list[float] = TUNED, base: list[float] = BASE) -> Behaviour:
    """Answers with `tuned` for the adapter's name and with `base` for any other."""
    return lambda request: scores(tuned if request["model"] == adapter else base)


def refusing(adapter: str) -> Behaviour:
    """Knows the base model only."""
    error = {"error": {"message": f"The model `{adapter}` does not exist: rank 64 > 16", "code": "model_not_found"}}
    return lambda request: (404, error) if request["model"] == adapter else scores(BASE)


def failing(status: int = 503) -> Behaviour:
    return lambda request: (status, {"error": {"message": "loading"}})


class FakeEndpoint:
    """Serves `{url}/{namespace}/v1/completions`."""

    def __init__(self) -> None:
        self.behaviours: dict[str, Behaviour] = {}
        self.requests: list[tuple[str, dict[str, Any]]] = []
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                namespace = self.path.split("/")[1]
                endpoint.requests.append((namespace, request))
                behaviour = endpoint.behaviours.get(namespace, failing())
                status, body = behaviour(request)
                text = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

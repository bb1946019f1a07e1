"""Servers on loopback that speak just enough HTTP to be probed: one behavior per namespace or pod.

Which adapters a pod has is what `listed` says, as if it read its list at every request.
"""

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from finetune_api.contract import PROMOTE_PATH
from finetune_api.fingerprint import Fingerprint, Probe
from finetune_api.serving import token_digest

Answer = tuple[int, dict[str, Any]]
Behavior = Callable[[dict[str, Any]], Answer]

TUNED = [-0.1, -0.2, -0.3]
BASE = [-1.1, -1.2, -1.3]
FINGERPRINT = Fingerprint(probes=[Probe(token_ids=[1, 2, 3, 4, 5], prompt_tokens=2, tuned=TUNED, base=BASE)])
"""Two prompt tokens, three scored ones; an effect of one nat per token."""


def scores(values: list[float]) -> Answer:
    return 200, {"choices": [{"logprobs": {"token_logprobs": [None, -5.0, *values]}}]}


Adapters = list[dict[str, Any]]
"""Entries of an AdapterList."""


def serving(adapter: str, tuned: list[float] = TUNED, base: list[float] = BASE) -> Behavior:
    """Answers with `tuned` for the adapter, candidate or not, and with `base` for any other."""
    return lambda request: scores(tuned if _stem(request) == adapter else base)


def serving_versions(tuned: dict[str, list[float]]) -> Behavior:
    """Answers to each model name as said, and like the base model to any other."""
    return lambda request: scores(tuned.get(request["model"], BASE))


def refusing(adapter: str) -> Behavior:
    """Knows the base model only."""
    error = {"error": {"message": f"The model `{adapter}` does not exist: rank 64 > 16", "code": "model_not_found"}}
    return lambda request: (404, error) if _stem(request) == adapter else scores(BASE)


def merged(adapter: str, tuned: list[float] = TUNED) -> Behavior:
    """Has the adapter in its weights, and serves nothing else."""
    error = {"error": {"message": "The base model is not served by itself", "code": "model_not_found"}}
    return lambda request: scores(tuned) if _stem(request) == adapter else (404, error)


def failing(status: int = 503) -> Behavior:
    return lambda request: (status, {"error": {"message": "loading"}})


def _stem(request: dict[str, Any]) -> str:
    name: str = request["model"]
    return name.partition("@")[0]


class FakeEndpoint:
    """Serves `{url}/{namespace}/{pod}/v1/completions`, `/v1/models`, `/readyz` and `/promote`."""

    def __init__(self, listed: Callable[[str, str], Adapters] | None = None) -> None:
        self.behaviors: dict[str, Behavior] = {}
        """By namespace, or by NAMESPACE/POD where one pod differs."""
        self.tokenize: Behavior = lambda request: (404, {"error": {"message": "Not Found"}})
        """Of all servers; one of another kind need not have the route."""
        self.refused: dict[str, str] = {}
        """Reasons by the path of the adapter that no server can load."""
        self.list_problem: str | None = None
        """Why no server can use its list."""
        self.ineffective: set[str] = set()
        """Paths of adapters with which a server answers like the base model."""
        self.requests: list[tuple[str, dict[str, Any]]] = []
        """Scored sequences, by namespace."""
        self.promoted: list[tuple[str, str, str]] = []
        """Namespace, pod and candidate of promotions with the token that an earlier list has the hash of."""
        self._offered: set[tuple[str, str, str]] = set()
        """Pod, candidate and hash of the token of candidates that were listed."""
        self.looks: list[str] = []
        """Namespaces whose servers were asked what they serve."""
        endpoint = self
        adapters_of = listed or (lambda namespace, pod: [])

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                _, namespace, pod, route, *_ = self.path.split("/")
                if route == "tokenize":
                    self._answer(*endpoint.tokenize(request))
                    return
                if f"/{route}" == PROMOTE_PATH:
                    candidate = request["candidate"]
                    if (pod, candidate, token_digest(request["token"])) not in endpoint._offered:
                        self._answer(403, {"error": {"message": "wrong token"}})
                        return
                    endpoint.promoted.append((namespace, pod, candidate))
                    self.send_response(204)
                    self.end_headers()
                    return
                endpoint.requests.append((namespace, request))
                paths = {a["name"]: a["path"] for a in adapters_of(namespace, pod)} if endpoint.ineffective else {}
                if paths.get(request["model"]) in endpoint.ineffective:
                    self._answer(*scores(BASE))
                    return
                behavior = endpoint.behaviors.get(namespace, failing())
                self._answer(*endpoint.behaviors.get(f"{namespace}/{pod}", behavior)(request))

            def do_GET(self) -> None:
                _, namespace, pod, route = self.path.split("/", 3)
                adapters = adapters_of(namespace, pod)
                refused = {a["name"]: endpoint.refused[a["path"]] for a in adapters if a["path"] in endpoint.refused}
                if route == "readyz":
                    problem = {"adapterList": endpoint.list_problem} if endpoint.list_problem else {}
                    self._answer(200, {"status": "ready", "refusedAdapters": refused, **problem})
                    return
                endpoint.looks.append(namespace)
                endpoint._offered |= {
                    (pod, a["name"], a["promotion"]["tokenDigest"]) for a in adapters if "promotion" in a
                }
                models = [{"id": a["name"], "digest": a.get("digest")} for a in adapters if a["name"] not in refused]
                self._answer(200, {"data": models})

            def _answer(self, status: int, body: dict[str, Any]) -> None:
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

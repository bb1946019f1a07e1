"""A hub on this machine: as much of its protocol as datasets need, over plain HTTP."""

import hashlib
import http.server
import json
import threading
import urllib.parse
from collections.abc import Mapping
from typing import Any

SHA = "0123456789abcdef0123456789abcdef01234567"
"""Commit of every repository."""


class Hub:
    """Server with dataset repositories; `requests` are the paths that were requested."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        self._repositories: dict[str, Mapping[str, bytes]] = {}
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
                hub.requests.append(path)
                body = hub._answer(path)
                self.send_response(404 if body is None else 200)
                self.send_header("Content-Length", str(len(body or b"")))
                self.send_header("X-Repo-Commit", SHA)
                self.send_header("ETag", f'"{hashlib.sha256(body or b"").hexdigest()}"')
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body or b"")

            do_HEAD = do_GET  # noqa: N815 - the standard library's name

            def log_message(self, *_arguments: Any) -> None:
                pass

        self._http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def add(self, name: str, files: Mapping[str, bytes]) -> None:
        """Add a dataset repository ORG/NAME with these files."""
        self._repositories[name] = files

    def close(self) -> None:
        """Stop the server."""
        self._http.shutdown()
        self._http.server_close()

    @property
    def downloads(self) -> list[str]:
        """Files that were downloaded, in order and each once."""
        found = [path.partition(f"/resolve/{SHA}/")[2] for path in self.requests if "/resolve/" in path]
        return list(dict.fromkeys(found))

    def _answer(self, path: str) -> bytes | None:
        for name, files in self._repositories.items():
            if path.startswith(f"/api/datasets/{name}"):
                siblings = [{"rfilename": file, "size": len(body)} for file, body in files.items()]
                return json.dumps({"id": name, "sha": SHA, "siblings": siblings}).encode()
            if path.startswith(f"/datasets/{name}/resolve/{SHA}/"):
                return files.get(path.partition(f"/resolve/{SHA}/")[2])
        return None

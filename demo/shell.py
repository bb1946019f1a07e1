"""kubectl, helm and the local cluster's command, as functions. A command that fails raises with what it said."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
FORWARD_SECONDS = 20.0
"""The longest that `kubectl port-forward` may take to say its port."""


class DemoError(Exception):
    """A step failed; `hint` says what a person can do about it."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class Shell:
    """Runs programs with the environment of one cluster."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.environment = {**os.environ, **environment}

    def run(self, *command: str, stdin: str | None = None, show: bool = False, check: bool = True) -> str:
        """Return the standard output of a program; with `show` it goes to the terminal instead."""
        capture = None if show else subprocess.PIPE
        try:
            result = subprocess.run(
                command, input=stdin, stdout=capture, stderr=capture, text=True, env=self.environment, check=False
            )
        except FileNotFoundError:
            raise DemoError(f"{command[0]} is not installed") from None
        if check and result.returncode != 0:
            said = (result.stderr or result.stdout or "").strip()
            raise DemoError(f"`{' '.join(command)}` ended with {result.returncode}" + (f":\n{said}" if said else ""))
        return result.stdout or ""

    def kubectl(self, *arguments: str, stdin: str | None = None, check: bool = True) -> str:
        """Output of kubectl."""
        return self.run("kubectl", *arguments, stdin=stdin, check=check)

    def get(self, *arguments: str) -> dict[str, Any] | None:
        """Return an object as JSON; None if there is none."""
        text = self.kubectl("get", "--ignore-not-found", "--output=json", *arguments)
        return json.loads(text) if text.strip() else None

    def apply(self, *manifests: Mapping[str, Any]) -> None:
        """Create or update objects."""
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(manifests)})
        self.kubectl("apply", "--server-side", "--force-conflicts", "--filename=-", stdin=text)

    def local_cluster(self, *arguments: str) -> None:
        """Run the local cluster's command; it says itself what it does."""
        try:
            self.run("env", f"PYTHONPATH={REPOSITORY}", sys.executable, "-m", "lab.kubernetes", *arguments, show=True)
        except DemoError:
            raise DemoError(
                f"the local cluster's command `{arguments[0]}` failed; its last lines above say why",
                "`make demo-down` and `make demo` start over; what was compiled, downloaded and built is kept.",
            ) from None

    @contextmanager
    def forward(self, namespace: str, service: str, port: str) -> Iterator[int]:
        """`kubectl port-forward` to a Service while the block runs; yields the port on this machine."""
        command = ["kubectl", "port-forward", f"--namespace={namespace}", f"service/{service}", f":{port}"]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=self.environment
        )
        try:
            yield _forwarded_port(process, service)
        finally:
            process.terminate()
            process.wait()


def _forwarded_port(process: "subprocess.Popen[str]", service: str) -> int:
    # "Forwarding from 127.0.0.1:40001 -> 8000"
    deadline = time.monotonic() + FORWARD_SECONDS
    said = ""
    while process.stdout and time.monotonic() < deadline and (line := process.stdout.readline()):
        said += line
        if line.startswith("Forwarding from 127.0.0.1:"):
            return int(line.partition("127.0.0.1:")[2].split()[0])
    raise DemoError(f"kubectl port-forward to service/{service} did not start: {said.strip() or 'it said nothing'}")

"""The real process: from start to ready, SIGTERM in the middle of an answer, and a model that is not there."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

pytestmark = [pytest.mark.model, pytest.mark.engine]

SECONDS = 240
"""Importing torch on a busy machine takes most of it."""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@contextmanager
def process(*arguments: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "finetune_inference", "--host", "127.0.0.1", *arguments]
    started = subprocess.Popen(command, env=os.environ | {"FINETUNE_SERVER_THREADS": "1"} | environment)
    try:
        yield started
    finally:
        started.kill()
        started.wait()


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_a_server_is_ready_idles_without_cpu_and_drains_on_sigterm(models: Path) -> None:
    port = free_port()
    arguments = ["--port", str(port), "--model", str(models / "base"), "--adapter", f"formal={models / 'formal'}"]
    with (
        process(*arguments, FINETUNE_SERVER_DRAIN_DELAY_SECONDS="1") as server,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=SECONDS) as client,
    ):
        wait_for(client, "/healthz", server)
        wait_for(client, "/readyz", server)
        before = cpu_seconds(server.pid)
        time.sleep(1)
        assert cpu_seconds(server.pid) - before < 0.1

        answers: list[httpx.Response] = []
        # Long enough to be in work when the signal comes; no end token can stop it early.
        body = {"model": "formal", "prompt": [5], "max_tokens": 500, "temperature": 0, "logit_bias": {"2": -100}}
        thread = threading.Thread(
            target=lambda: answers.append(httpx.post(f"{client.base_url}/v1/completions", json=body, timeout=SECONDS))
        )
        thread.start()
        while "running_sequences 1.0" not in client.get("/metrics").text:
            time.sleep(0.02)
        server.send_signal(signal.SIGTERM)
        while (answer := client.get("/readyz")).status_code == 200:
            time.sleep(0.02)
        assert answer.json()["status"] == "draining"
        assert answer.headers["connection"] == "close", "the next one goes where the load balancer says"
        thread.join()
        assert answers[0].status_code == 200
        assert answers[0].json()["usage"]["completion_tokens"] == 500
        assert server.wait(SECONDS) == 0


def test_sigterm_while_the_model_loads_ends_the_process_at_once(models: Path) -> None:
    port = free_port()
    with (
        process(
            "--port", str(port), "--model", str(models / "base"), FINETUNE_SERVER_DRAIN_DELAY_SECONDS=str(2 * SECONDS)
        ) as server,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=SECONDS) as client,
    ):
        wait_for(client, "/healthz", server)
        assert client.get("/readyz").status_code == 503
        server.send_signal(signal.SIGTERM)
        assert server.wait(SECONDS) == 0


def test_a_model_that_is_not_there_ends_the_process_with_status_1(tmp_path: Path) -> None:
    with process("--port", str(free_port()), "--model", str(tmp_path / "nothing")) as server:
        assert server.wait(SECONDS) == 1


def test_a_configuration_that_is_not_there_ends_the_process_with_status_2(tmp_path: Path) -> None:
    with process("--config", str(tmp_path / "none.json")) as server:
        assert server.wait(SECONDS) == 2


def wait_for(client: httpx.Client, path: str, server: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        assert server.poll() is None, "the process ended"
        try:
            if client.get(path).status_code == 200:
                return
        except httpx.ConnectError:
            pass
        time.sleep(0.05)
    raise AssertionError(f"{path} never answered")

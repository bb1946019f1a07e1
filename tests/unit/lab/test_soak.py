"""A short soak with a tiny model; `make soak-server` does a long one with a real model."""

import asyncio
import socket
from pathlib import Path

import pytest

from lab.fixtures.tiny_model import make_tiny_model
from lab.soak.soak import Plan, run, server

pytestmark = pytest.mark.model

SHORT = Plan(
    answer_tokens=100,
    longest=512,
    overload_seconds=3,
    slow_readers=8,
    abandoned=100,
    giants=4,
    random_requests=200,
    steady_seconds=4,
    # More than run at once: all together take seconds, and the port closes after one.
    draining=40,
)


@pytest.mark.timeout(600)  # half a minute, or minutes beside programs that leave it no core
def test_a_server_survives_overload_rude_clients_and_sigterm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A model this small gains nothing from a second thread.
    monkeypatch.setenv("FINETUNE_SERVER_THREADS", "1")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with server(make_tiny_model(tmp_path / "model"), port, tmp_path / "log") as process:
        seen = asyncio.run(run(SHORT, port, process, print))
    assert seen.problems == []
    assert seen.refused
    assert seen.accepted
    assert seen.abandoned == SHORT.abandoned
    assert seen.left == {"waiting_sequences": 0, "running_sequences": 0, "cached_tokens": 0}
    assert seen.drained == SHORT.draining
    assert seen.turned_away
    assert seen.exit_status == 0

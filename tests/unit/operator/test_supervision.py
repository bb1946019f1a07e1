"""kopf may end whenever it likes: it is started again, in this process, and health knows."""

import asyncio
import importlib.metadata
import threading

import pytest

from finetune_operator.handlers import watch_supervisor as startup
from finetune_operator.handlers.watch_supervisor import WatchSupervisor
from finetune_operator.process.health import Health
from finetune_operator.settings import Settings


def test_kopf_is_a_version_that_ends_instead_of_going_deaf() -> None:
    version = tuple(int(part) for part in importlib.metadata.version("kopf").split(".")[:3])
    assert version >= (1, 45, 2), "older versions go deaf after a broken watch and stay alive"


def test_a_broken_watch_is_started_afresh_until_it_is_told_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startup, "RESTART_SECONDS", 0.01)
    starts: list[bool] = []
    enough = threading.Event()
    health = Health()

    async def run_kopf(self: WatchSupervisor, stop: asyncio.Event) -> None:
        starts.append(health.is_watching)
        health.watch_started()
        if len(starts) < 3:
            raise RuntimeError("Ran out of valid credentials")
        enough.set()
        await asyncio.wait_for(stop.wait(), 10)

    monkeypatch.setattr(WatchSupervisor, "_run_kopf", run_kopf)
    supervisor = WatchSupervisor(Settings(), lambda key: None, health)
    supervisor.start()
    assert enough.wait(10)
    assert health.is_watching
    supervisor.stop()
    assert starts == [False, False, False]
    assert not health.is_watching
    assert not supervisor._thread.is_alive()

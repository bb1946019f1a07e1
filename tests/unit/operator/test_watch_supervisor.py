"""kopf's settings to the second, its login, and how its thread is started, restarted and ended."""

import asyncio
import threading
from types import SimpleNamespace
from typing import Any

import kopf
import pytest

from finetune_operator.handlers import watch_supervisor
from finetune_operator.handlers.watch_supervisor import (
    WatchSupervisor,
    add_login,
    build_kopf_settings,
    thread_safe,
)
from finetune_operator.handlers.watches import CHILDREN
from finetune_operator.process import metrics
from finetune_operator.process.health import Health
from finetune_operator.settings import Settings


def restarts() -> float:
    return metrics.WATCH_RESTARTS._value.get()


def test_kopf_notices_a_dead_stream_and_comes_back_soon() -> None:
    settings = build_kopf_settings()
    watching, networking = settings.watching, settings.networking
    assert (watching.server_timeout, watching.client_timeout) == (300, 310)
    assert (watching.connect_timeout, watching.inactivity_timeout) == (5, 70)
    assert networking.error_backoffs == [1, 1, 2, 2, 2, 2, 2, 2]
    assert (networking.connect_timeout, networking.request_timeout) == (5, 30)
    assert settings.queueing.error_delays == [1, 2, 5, 15]


def test_only_objects_of_the_operator_are_watched() -> None:
    selectors = build_kopf_settings().watching.label_selectors
    assert CHILDREN
    assert {resource: selectors[resource] for resource in CHILDREN} == dict.fromkeys(
        CHILDREN, "app.kubernetes.io/managed-by=finetune-operator"
    )


@pytest.mark.parametrize("token", ["secret", None])
def test_the_login_reads_credentials_each_time(monkeypatch: pytest.MonkeyPatch, token: str | None) -> None:
    asked: list[Any] = []

    async def read_credentials(kubeconfig: str | None) -> Any:
        asked.append(kubeconfig)
        return SimpleNamespace(server="https://api", ca_path="ca", token=token, certificate_path="crt", key_path="key")

    monkeypatch.setattr(watch_supervisor, "read_credentials", read_credentials)
    registry = kopf.OperatorRegistry()
    add_login(registry, "/kubeconfig")
    (handler,) = registry._activities._handlers
    for _ in range(2):
        info = asyncio.run(handler.fn())  # type: ignore[arg-type]
        assert info == kopf.ConnectionInfo(
            server="https://api",
            ca_path="ca",
            scheme="Bearer" if token else None,
            token=token,
            certificate_path="crt",
            private_key_path="key",
        )
    assert asked == ["/kubeconfig", "/kubeconfig"]


@pytest.mark.parametrize("namespaces", ["", "b,a"])
def test_kopf_is_started_with_what_it_needs(monkeypatch: pytest.MonkeyPatch, namespaces: str) -> None:
    monkeypatch.setenv("FINETUNE_OPERATOR_NAMESPACES", namespaces)
    health = Health()
    given: dict[str, Any] = {}

    async def spawn_tasks(**arguments: Any) -> list[asyncio.Task[None]]:
        given.update(arguments)
        for handler in arguments["registry"]._activities._handlers:
            if str(handler.id).endswith("started"):
                await handler.fn()
        return [asyncio.create_task(asyncio.sleep(0))]

    monkeypatch.setattr(kopf, "spawn_tasks", spawn_tasks)
    supervisor = WatchSupervisor(Settings(), lambda _key: None, health)
    asyncio.run(supervisor._watch())
    assert health.is_watching
    assert given["namespaces"] == (["a", "b"] if namespaces else [])
    assert given["clusterwide"] is not namespaces.startswith("b")
    assert given["standalone"] is True
    assert given["identity"] == "finetune-operator"
    assert given["settings"].posting.enabled is False
    assert isinstance(given["stop_flag"], asyncio.Event)
    assert any(str(handler.id).endswith("login") for handler in given["registry"]._activities._handlers)


async def _cancellable(cancelled: list[str]) -> None:
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        cancelled.append("other")
        raise


async def _fails() -> None:
    await asyncio.sleep(0)
    raise RuntimeError("watch broken")


def test_when_one_of_kopfs_tasks_fails_the_others_are_cancelled_and_its_error_is_raised() -> None:
    cancelled: list[str] = []

    async def run() -> None:
        tasks = [asyncio.create_task(_cancellable(cancelled)), asyncio.create_task(_fails())]
        await watch_supervisor._until_first_ends(tasks)

    with pytest.raises(RuntimeError, match="watch broken"):
        asyncio.run(run())
    assert cancelled == ["other"]


def test_a_task_that_ends_alone_is_the_end() -> None:
    async def run() -> None:
        await watch_supervisor._until_first_ends([asyncio.create_task(asyncio.sleep(0))])

    asyncio.run(run())


def test_a_task_that_ignores_its_cancellation_is_waited_for_a_second_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_supervisor, "CANCEL_SECONDS", 0.05)
    ended: list[str] = []

    async def stubborn() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            await asyncio.sleep(0.4)
            ended.append("stubborn")

    async def run() -> list[str]:
        tasks = [asyncio.create_task(stubborn()), asyncio.create_task(asyncio.sleep(0))]
        await asyncio.sleep(0)
        await watch_supervisor._until_first_ends(tasks)
        return list(ended)

    assert asyncio.run(run()) == []


def test_a_restart_is_counted_and_waits_and_an_end_on_request_is_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    supervisor = WatchSupervisor(Settings(), lambda _key: None, Health())
    before = restarts()
    runs: list[int] = []

    async def watch() -> None:
        runs.append(1)
        if len(runs) == 3:
            supervisor._stop.set()

    monkeypatch.setattr(supervisor, "_watch", watch)
    monkeypatch.setattr(supervisor._stop, "wait", waits.append)
    supervisor._run()
    assert len(runs) == 3
    assert waits == [1.0, 1.0]
    assert restarts() - before == 2


def test_a_supervisor_that_is_stopped_before_kopf_starts_does_not_start_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run_kopf(_stop: asyncio.Event) -> None:
        raise AssertionError("kopf was started")

    supervisor = WatchSupervisor(Settings(), lambda _key: None, Health())
    monkeypatch.setattr(supervisor, "_run_kopf", run_kopf)
    supervisor._stop.set()
    asyncio.run(supervisor._watch())


def test_after_a_watch_nothing_is_left_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    supervisor = WatchSupervisor(Settings(), lambda _key: None, Health())
    during: list[Any] = []

    async def run_kopf(_stop: asyncio.Event) -> None:
        during.append(supervisor._end_watch)

    monkeypatch.setattr(supervisor, "_run_kopf", run_kopf)
    asyncio.run(supervisor._watch())
    assert supervisor._end_watch is watch_supervisor._nothing
    assert during[0] is not watch_supervisor._nothing


def test_stopping_waits_fifteen_seconds_for_a_thread_that_does_not_hold_the_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    supervisor = WatchSupervisor(Settings(), lambda _key: None, Health())
    assert (supervisor._thread.name, supervisor._thread.daemon) == ("kopf", True)
    joined: list[float] = []
    monkeypatch.setattr(supervisor._thread, "join", joined.append)
    supervisor.stop()
    assert joined == [15.0]
    assert supervisor._stop.is_set()


def test_a_mark_from_another_thread_arrives_in_the_loop() -> None:
    marked: list[Any] = []

    async def run() -> None:
        done = asyncio.Event()
        call = thread_safe(asyncio.get_running_loop(), lambda key: (marked.append(key), done.set()))  # type: ignore[func-returns-value]
        thread = threading.Thread(target=call, args=("key",))
        thread.start()
        await asyncio.wait_for(done.wait(), 10)
        thread.join()

    asyncio.run(run())
    assert marked == ["key"]

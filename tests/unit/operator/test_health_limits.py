"""Health to the second, and what the probes answer over HTTP."""

import asyncio

import pytest
from aiohttp.test_utils import TestClient, TestServer

from finetune_operator.process.health import Health, build_app
from support.objects.clock import Clock

STUCK = "the resync is stuck"
REFUSED = "the API server refuses the operator"
NO_WATCH = "the watch does not start"
NOT_LISTED = "the first resync is not complete"
OUTAGE = "the API server does not answer"
NOT_WATCHING = "the watch is not running"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def health(clock: Clock) -> Health:
    return Health(clock)


def working(health: Health) -> Health:
    health.watch_started()
    health.resync_succeeded()
    return health


def test_a_start_without_any_resync_is_stuck_after_ninety_seconds(health: Health, clock: Clock) -> None:
    clock.now += 90
    assert health.problem() is None
    clock.now += 0.1
    assert health.problem() == STUCK


def test_a_refusal_is_unhealthy_after_ninety_seconds_without_an_answer(health: Health, clock: Clock) -> None:
    working(health)
    clock.now += 90
    health.resync_failed(is_outage=False)
    assert health.problem() is None
    clock.now += 0.1
    assert health.problem() == REFUSED


def test_a_refusal_after_an_outage_counts(health: Health, clock: Clock) -> None:
    working(health)
    clock.now += 91
    health.resync_failed(is_outage=True)
    assert (health.problem(), health.unready_reason()) == (None, OUTAGE)
    health.resync_failed(is_outage=False)
    assert health.problem() == health.unready_reason() == REFUSED
    health.resync_succeeded()
    assert (health.problem(), health.unready_reason()) == (None, None)


def test_an_operator_is_ready_once_it_has_listed_and_watches(health: Health) -> None:
    assert health.unready_reason() == NOT_LISTED
    assert health.is_watching is False
    health.resync_failed(is_outage=True)
    assert health.unready_reason() == NOT_LISTED
    health.resync_succeeded()
    assert health.unready_reason() == NOT_WATCHING
    health.watch_started()
    assert health.unready_reason() is None
    health.watch_lost()
    assert health.is_watching is False
    assert health.unready_reason() == NOT_WATCHING


def test_a_watch_that_never_comes_up_is_unhealthy_after_ninety_seconds(health: Health, clock: Clock) -> None:
    working(health)
    health.watch_lost()
    clock.now += 90
    health.resync_succeeded()
    assert health.problem() is None
    clock.now += 0.1
    assert health.problem() == NO_WATCH


def test_a_watch_works_after_more_than_twenty_seconds(health: Health, clock: Clock) -> None:
    working(health)
    health.watch_lost()
    clock.now += 80
    health.watch_started()
    clock.now += 20
    health.resync_succeeded()
    assert health.problem() == NO_WATCH, "twenty seconds prove nothing yet"
    clock.now += 0.1
    assert health.problem() is None


def test_a_watch_that_worked_before_it_was_lost_has_ninety_seconds_again(health: Health, clock: Clock) -> None:
    working(health)
    health.watch_lost()
    clock.now += 80
    health.watch_started()
    clock.now += 21
    health.watch_lost()
    clock.now += 89
    health.resync_succeeded()
    assert health.problem() is None
    clock.now += 2
    assert health.problem() == NO_WATCH


def test_a_watch_that_keeps_ending_is_failing_since_the_first_time(health: Health, clock: Clock) -> None:
    working(health)
    for _ in range(5):
        health.watch_lost()
        clock.now += 19
        health.watch_started()
    health.resync_succeeded()
    assert health.problem() == NO_WATCH


async def _answers(health: Health) -> dict[str, tuple[int, str, str]]:
    async with TestClient(TestServer(build_app(health))) as client:
        answers = {}
        for path in ("/healthz", "/readyz", "/metrics"):
            response = await client.get(path)
            answers[path] = (response.status, await response.text(), response.headers["Content-Type"])
        return answers


def test_probes_answer_503_with_the_reason_or_200(health: Health, clock: Clock) -> None:
    answers = asyncio.run(_answers(health))
    assert answers["/healthz"][:2] == (200, "ok")
    assert answers["/readyz"][:2] == (503, NOT_LISTED)
    status, text, content_type = answers["/metrics"]
    assert status == 200
    assert "# HELP " in text
    assert "version=" in content_type, "Prometheus chooses its parser by it"
    clock.now += 91
    assert asyncio.run(_answers(health))["/healthz"][:2] == (503, STUCK)

"""Reporting: throttled, never in the way, and silent about a backend that is gone."""

import logging
import threading
import time
from typing import Any

import pytest

from finetune_api.outcome import Outcome, Progress, Result
from finetune_api.reasons import Reason
from finetune_trainer.reporting.progress import BackendReporter, LogReporter, Reporters


def a_step(step: int) -> Progress:
    return Progress(step=step, total_steps=100, loss=1.5, timestamp=0)


def test_a_backend_hears_the_latest_figures_and_the_last_word_but_not_every_step() -> None:
    stored: list[tuple[dict[str, Any], str]] = []
    reporter = BackendReporter(lambda result, state: stored.append((result, state)), interval=60)
    for step in range(1, 101):
        reporter.report(a_step(step))
    outcome = Outcome(result=Result.SUCCEEDED, reason=Reason.TRAINED)
    reporter.close(outcome)
    assert stored[-1] == (outcome.to_dict(), "SUCCESS")
    assert len(stored) <= 3
    assert all(state == "PROGRESS" for _, state in stored[:-1])


def test_a_backend_that_hangs_or_fails_holds_nobody_up() -> None:
    release = threading.Event()

    def hang(_result: dict[str, Any], _state: str) -> None:
        release.wait(30)
        raise ConnectionError("gone")

    reporter = BackendReporter(hang, interval=0)
    started = time.monotonic()
    for step in range(1, 101):
        reporter.report(a_step(step))
    assert time.monotonic() - started < 1
    release.set()
    reporter.close()


def test_a_backend_that_is_gone_is_mentioned_once(caplog: pytest.LogCaptureFixture) -> None:
    def fail(_result: dict[str, Any], _state: str) -> None:
        raise ConnectionError("gone")

    reporter = BackendReporter(fail, interval=0)
    with caplog.at_level(logging.WARNING, "finetune_trainer"):
        reporter.report(a_step(1))
        reporter.close(Outcome(result=Result.SUCCEEDED, reason=Reason.TRAINED))
    assert [r.message for r in caplog.records] == ["progress cannot be reported: ConnectionError: gone"]


def test_the_log_has_the_first_and_the_last_step_and_few_between(caplog: pytest.LogCaptureFixture) -> None:
    reporter = Reporters([LogReporter(interval=60)])
    with caplog.at_level(logging.INFO, "finetune_trainer"):
        for step in range(1, 101):
            reporter.report(a_step(step))
        reporter.close()
    assert [r.message.split()[0] for r in caplog.records] == ["step=1/100", "step=100/100"]

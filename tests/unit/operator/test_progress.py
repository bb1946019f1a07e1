"""Progress comes from Celery's result backend, and silence costs nothing."""

import asyncio
import json
from collections.abc import Callable
from typing import Any, Self

import pytest

from finetune_api.outcome import MicroBatching, Outcome
from finetune_operator.io.progress import PAUSE_SECONDS, ProgressReader, parse_result
from finetune_operator.reconcile.job.progress_report import (
    finished_progress,
    humanize,
    is_due,
    progress_status,
    reduction_events,
)
from support.objects.operator_objects import NOW, UID, a_progress


def meta(status: str, result: Any) -> bytes:
    return json.dumps({"status": status, "result": result, "task_id": f"{UID}-1"}).encode()


def test_a_running_task_has_figures() -> None:
    progress = a_progress(3, loss=0.5)
    assert parse_result(meta("PROGRESS", progress.to_dict())) == progress


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"",
        b"{",
        b"[]",
        b'"x"',
        meta("PENDING", None),
        meta("SUCCESS", {"step": 1}),
        meta("PROGRESS", None),
        meta("PROGRESS", {"step": -1}),
    ],
)
def test_anything_else_is_silence(value: bytes | None) -> None:
    assert parse_result(value) is None


def test_figures_of_held_out_rows_are_text_as_the_loss_is() -> None:
    assert progress_status(a_progress(3, loss=0.5)).eval_loss is None
    status = progress_status(a_progress(3, loss=0.5).model_copy(update={"eval_loss": 0.25}))
    assert (status.loss, status.eval_loss) == ("0.5000", "0.2500")


def test_memory_that_ran_out_is_told_once() -> None:
    planned = MicroBatching(micro_batch_size=8)
    halved = MicroBatching(micro_batch_size=4, reductions=1)
    before = progress_status(a_progress(3, passes=planned))
    assert reduction_events(None, planned) == ()
    assert reduction_events(before, None) == ()
    (event,) = reduction_events(before, halved)
    assert (event.reason, event.is_warning) == ("OutOfMemory", True)
    assert "micro-batches of 4 rows." in event.message
    after = progress_status(a_progress(4, passes=halved))
    assert after.passes == halved
    assert reduction_events(after, halved) == ()
    least = MicroBatching(micro_batch_size=1, gradient_checkpointing=True, reductions=3)
    assert "1 row with gradient checkpointing" in reduction_events(after, least)[0].message


class FakeRedis:
    """Answers GETs that were sent together."""

    def __init__(self, answer: Callable[[list[str]], list[bytes]]) -> None:
        self._answer = answer
        self._keys: list[str] = []

    def pipeline(self, *, transaction: bool) -> Self:
        assert not transaction, "MULTI needs a right that the operator's user does not have"
        return self

    def get(self, key: str) -> None:
        self._keys.append(key)

    async def execute(self) -> list[bytes]:
        return self._answer(self._keys)


def test_without_a_broker_nobody_is_asked() -> None:
    assert asyncio.run(ProgressReader(None).read(UID, 1)) is None
    assert asyncio.run(ProgressReader("").read(UID, 1)) is None


def test_a_dead_broker_is_asked_once_and_then_left_alone() -> None:
    now = [0.0]
    reader = ProgressReader("redis://127.0.0.1:9/0", clock=lambda: now[0])
    asked = []

    def die(keys: list[str]) -> list[bytes]:
        asked.extend(keys)
        raise ConnectionError("no")

    reader._connected = lambda url: FakeRedis(die)  # type: ignore[method-assign,assignment,return-value]

    async def read_often() -> None:
        for _ in range(50):
            assert await reader.read(UID, 2) is None

    asyncio.run(read_often())
    assert asked == [f"celery-task-meta-{UID}-2"]
    now[0] += PAUSE_SECONDS
    asyncio.run(read_often())
    assert len(asked) == 2


def test_hundreds_of_running_jobs_are_one_request() -> None:
    reader = ProgressReader("redis://127.0.0.1:9/0")
    asked: list[list[str]] = []

    def answer(keys: list[str]) -> list[bytes]:
        asked.append(keys)
        return [meta("PROGRESS", a_progress(int(key.rpartition("-")[2])).to_dict()) for key in keys]

    reader._connected = lambda url: FakeRedis(answer)  # type: ignore[method-assign,assignment,return-value]

    async def read_all() -> list[Any]:
        return await asyncio.gather(*(reader.read(UID, number) for number in range(1, 301)))

    assert [progress.step for progress in asyncio.run(read_all())] == list(range(1, 301))
    assert len(asked) == 1


def test_a_broker_that_is_not_there_raises_nothing() -> None:
    assert asyncio.run(ProgressReader("redis://127.0.0.1:9/0").read(UID, 1)) is None


def test_figures_are_shown_as_people_write_them() -> None:
    progress = a_progress(3, loss=1.23456789, eta_seconds=7505.4, tokens_per_second=99.6, epoch=1.23456)
    status = progress_status(progress)
    assert (status.percent, status.loss, status.eta, status.tokens_per_second) == (30, "1.2346", "2h05m", 100)
    assert (status.epoch, status.last_update_time) == (1.23, NOW)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (59, "59s"), (60, "1m00s"), (3599, "59m59s"), (3600, "1h00m")]
)
def test_durations(seconds: int, text: str) -> None:
    assert humanize(seconds) == text


def test_figures_that_do_not_move_are_not_written_again() -> None:
    status = progress_status(a_progress(3))
    assert not is_due(status, a_progress(3, timestamp=NOW.timestamp() + 60), 5)
    assert is_due(status, a_progress(4, timestamp=NOW.timestamp() + 5), 5)
    assert is_due(None, a_progress(0), 5)


def test_training_that_is_done_is_a_hundred_percent() -> None:
    done = finished_progress(
        progress_status(a_progress(3, loss=0.5)), Outcome(result="Succeeded", reason="Trained", step=9)
    )
    assert (done.step, done.total_steps, done.percent, done.eta, done.loss) == (9, 9, 100, None, "0.5000")

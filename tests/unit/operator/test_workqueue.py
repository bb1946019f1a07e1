"""The queue with a fake clock: coalescing, one worker per key, delays, backoff, holds."""

import asyncio

import pytest

from finetune_operator.handlers.work_queue import MAX_BACKOFF_SECONDS, WorkQueue, backoff_seconds
from support.objects.clock import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def queue(clock: Clock) -> WorkQueue[str]:
    return WorkQueue(clock)


def test_many_events_are_one_pass(queue: WorkQueue[str]) -> None:
    for _ in range(100):
        queue.add("a")
    assert queue.take_due() == "a"
    assert queue.take_due() is None


def test_keys_come_in_the_order_they_became_due(queue: WorkQueue[str], clock: Clock) -> None:
    queue.add("later", delay=5)
    queue.add("first")
    queue.add("second")
    assert [queue.take_due(), queue.take_due(), queue.take_due()] == ["first", "second", None]
    clock.now += 5
    assert queue.take_due() == "later"


def test_an_event_during_a_pass_is_one_more_pass_and_not_a_second_worker(queue: WorkQueue[str]) -> None:
    queue.add("a")
    assert queue.take_due() == "a"
    queue.add("a")
    queue.add("a")
    assert queue.take_due() is None
    queue.done("a")
    assert queue.take_due() == "a"
    queue.done("a")
    assert queue.take_due() is None
    assert len(queue) == 0


def test_the_earlier_date_wins(queue: WorkQueue[str], clock: Clock) -> None:
    queue.add("a", delay=10)
    queue.add("a", delay=2)
    queue.add("a", delay=20)
    clock.now += 2
    assert queue.take_due() == "a"
    queue.done("a")
    clock.now += 30
    assert queue.take_due() is None


def test_a_pass_may_ask_for_the_next_one(queue: WorkQueue[str], clock: Clock) -> None:
    queue.add("a")
    queue.take_due()
    queue.done("a", requeue_after=3)
    assert queue.take_due() is None
    clock.now += 3
    assert queue.take_due() == "a"


def test_an_event_does_not_wait_for_the_requested_date(queue: WorkQueue[str]) -> None:
    queue.add("a")
    queue.take_due()
    queue.done("a", requeue_after=300)
    queue.add("a")
    assert queue.take_due() == "a"


def test_failures_back_off_and_success_forgets_them(queue: WorkQueue[str], clock: Clock) -> None:
    pauses = []
    queue.add("a")
    for _ in range(8):
        start = clock.now
        while queue.take_due() is None:
            clock.now += 0.25
        pauses.append(clock.now - start)
        queue.add("a")  # An event in the middle does not shorten the pause.
        queue.done("a", failed=True)
    assert pauses == [0, 0.5, 1, 2, 4, 8, 15, 15]
    clock.now += 15
    assert queue.take_due() == "a"
    queue.done("a")
    queue.add("a")
    queue.take_due()
    queue.done("a", failed=True)
    clock.now += 0.5
    assert queue.take_due() == "a"


def test_the_backoff_is_capped() -> None:
    assert backoff_seconds(1) == 0.5
    assert backoff_seconds(10_000) == MAX_BACKOFF_SECONDS


def test_a_held_key_waits_and_then_has_one_pass_for_everything(queue: WorkQueue[str], clock: Clock) -> None:
    queue.add("a")
    queue.take_due()
    queue.hold("a", 0.75)
    queue.done("a", requeue_after=0)
    queue.add("a")
    queue.add("b")
    assert queue.take_due() == "b"
    clock.now += 0.5
    queue.add("a")
    assert queue.take_due() is None
    clock.now += 0.25
    assert queue.take_due() == "a"
    queue.done("a")
    queue.add("a")
    assert queue.take_due() == "a"


def test_the_depth_counts_only_what_waits_now(queue: WorkQueue[str]) -> None:
    queue.add("now")
    queue.add("later", delay=60)
    assert (queue.overdue, len(queue)) == (1, 2)


def test_a_waiting_worker_wakes_up() -> None:
    async def scenario() -> str:
        queue: WorkQueue[str] = WorkQueue()
        waiting = asyncio.create_task(queue.take())
        await asyncio.sleep(0)
        queue.add("soon", delay=0.01)
        return await asyncio.wait_for(waiting, 5)

    assert asyncio.run(scenario()) == "soon"


def test_many_workers_share_the_keys() -> None:
    async def scenario() -> list[str]:
        queue: WorkQueue[str] = WorkQueue()
        seen: list[str] = []
        complete = asyncio.Event()

        async def work() -> None:
            while True:
                key = await queue.take()
                seen.append(key)
                await asyncio.sleep(0)
                queue.done(key)
                if len(seen) == 50:
                    complete.set()

        workers = [asyncio.create_task(work()) for _ in range(4)]
        for number in range(50):
            queue.add(f"k{number}")
        await asyncio.wait_for(complete.wait(), 5)
        for worker in workers:
            worker.cancel()
        return seen

    assert sorted(asyncio.run(scenario())) == sorted(f"k{number}" for number in range(50))


def test_a_waiting_worker_ends_even_if_work_comes_together_with_its_cancellation(clock: Clock) -> None:
    async def life() -> None:
        queue: WorkQueue[str] = WorkQueue(clock)
        queue.add("later", delay=100)
        worker = asyncio.create_task(queue.take())
        for _ in range(3):
            await asyncio.sleep(0)
        queue.add("a")
        worker.cancel()
        with pytest.raises(asyncio.CancelledError):
            await worker
        assert queue.take_due() == "a", "and the work is still there"

    asyncio.run(life())

"""The queue and the thread in front of an engine that does what the test says; no torch."""

import math
import queue
import threading
from collections.abc import Callable, Iterator

import pytest

from finetune_inference.engine.interface import (
    Engine,
    Event,
    Failed,
    Finished,
    Generated,
    ModelLoadError,
    ScoredToken,
    TimedOut,
    TokenRequest,
)
from finetune_inference.engine.scheduler import FairQueue, QueueFullError, Scheduler, SchedulerStoppedError, Ticket
from support.server.stepped_engine import SECONDS, SteppedEngine


def a_request(adapter: str | None = None, *, max_tokens: int = 1) -> TokenRequest:
    return TokenRequest(prompt=[1], adapter=adapter, max_tokens=max_tokens)


class Listening:
    """Collects the events of one sequence."""

    def __init__(self) -> None:
        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()

    def __call__(self, event: Event) -> None:
        self.events.put(event)

    def next(self) -> Event:
        return self.events.get(timeout=SECONDS)


@pytest.fixture
def engine() -> SteppedEngine:
    return SteppedEngine()


@pytest.fixture
def scheduler(engine: SteppedEngine) -> Iterator[Callable[..., Scheduler]]:
    made: list[Scheduler] = []

    def make(
        max_waiting: int = 8, prepare: Callable[[], Engine] = lambda: engine, timeout: float = math.inf
    ) -> Scheduler:
        made.append(Scheduler(prepare, max_waiting=max_waiting, timeout=timeout))
        made[-1].start()
        return made[-1]

    yield make
    engine.allow(200)
    for each in made:
        each.stop(timeout=SECONDS)


def submit(scheduler: Scheduler, *requests: TokenRequest) -> tuple[list[Ticket], list[Listening]]:
    listening = [Listening() for _ in requests]
    return scheduler.submit(list(zip(requests, listening, strict=True))), listening


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = threading.Event()
    for _ in range(SECONDS * 100):
        if condition():
            return
        deadline.wait(0.01)
    raise AssertionError("the condition never came true")


def test_models_take_turns() -> None:
    line = FairQueue()
    for key, adapter in enumerate(["a", "a", "a", "b", None, "b"]):
        line.push(Ticket(key, a_request(adapter), print))
    assert [line.pop().key for _ in range(len(line))] == [0, 3, 4, 1, 5, 2]


def test_a_discarded_ticket_leaves_its_place() -> None:
    line = FairQueue()
    tickets = [Ticket(key, a_request("a"), print) for key in range(3)]
    for ticket in tickets:
        line.push(ticket)
    line.discard(tickets[1])
    line.discard(tickets[1])
    assert [line.pop().key for _ in range(len(line))] == [0, 2]
    line.discard(tickets[0])


def test_a_sequence_gets_its_tokens_and_its_end(scheduler: Callable[..., Scheduler], engine: SteppedEngine) -> None:
    _, (listening,) = submit(scheduler(), a_request(max_tokens=2))
    engine.steps.put(None)
    engine.steps.put(None)
    assert [listening.next() for _ in range(3)] == [
        Generated(ScoredToken(0, -1.0)),
        Generated(ScoredToken(1, -1.0)),
        Finished("length", 2),
    ]


def test_a_full_queue_takes_all_of_a_request_or_nothing(
    scheduler: Callable[..., Scheduler], engine: SteppedEngine
) -> None:
    busy = scheduler(max_waiting=2)
    _, (first,) = submit(busy, a_request())
    wait_until(lambda: busy.running == 1)
    submit(busy, a_request())
    with pytest.raises(QueueFullError) as caught:
        submit(busy, a_request(), a_request())
    assert caught.value.waiting == 1
    assert 1 <= caught.value.retry_after <= 30
    assert busy.waiting == 1
    submit(busy, a_request())
    engine.steps.put(None)
    assert isinstance(first.next(), Generated)


def test_a_cancelled_sequence_makes_room(scheduler: Callable[..., Scheduler], engine: SteppedEngine) -> None:
    busy = scheduler()
    running, (cancelled,) = submit(busy, a_request("running", max_tokens=1000))
    waiting, _ = submit(busy, a_request("waiting"))
    _, (other,) = submit(busy, a_request("other"))
    wait_until(lambda: busy.running == 1)
    engine.steps.put(None)
    assert isinstance(cancelled.next(), Generated)
    busy.cancel(running)
    busy.cancel(waiting)
    engine.steps.put(None)
    engine.steps.put(None)
    assert isinstance(other.next(), Generated)
    assert engine.added == ["running", "other"]
    assert engine.removed == [running[0].key]
    assert cancelled.events.empty()


def test_a_failed_step_fails_its_sequence_and_not_the_next(
    scheduler: Callable[..., Scheduler], engine: SteppedEngine
) -> None:
    working = scheduler()
    for failure in (RuntimeError("out of memory"), None, RuntimeError("again"), RuntimeError("again"), None):
        _, (listening,) = submit(working, a_request())
        engine.steps.put(failure)
        assert isinstance(listening.next(), Failed if failure else Generated)
    assert working.ready


def test_a_sequence_that_the_engine_does_not_take_fails_alone(
    scheduler: Callable[..., Scheduler], engine: SteppedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = engine.add

    def picky(key: int, request: TokenRequest) -> None:
        if request.adapter == "odd":
            raise RuntimeError("no such seed")
        add(key, request)

    monkeypatch.setattr(engine, "add", picky)
    working = scheduler()
    for _ in range(4):
        _, (odd,) = submit(working, a_request("odd"))
        assert odd.next() == Failed("RuntimeError: no such seed")
    _, (listening,) = submit(working, a_request())
    engine.steps.put(None)
    assert isinstance(listening.next(), Generated)
    assert working.ready


def test_an_engine_that_only_fails_is_given_up(scheduler: Callable[..., Scheduler], engine: SteppedEngine) -> None:
    broken = scheduler()
    _, listening = submit(broken, *[a_request() for _ in range(5)])
    for _ in range(3):
        engine.steps.put(RuntimeError("the device fell off the bus"))
    assert all(isinstance(each.next(), Failed) for each in listening)
    wait_until(lambda: broken.failure is not None)
    assert not broken.ready
    with pytest.raises(SchedulerStoppedError, match="fell off the bus"):
        submit(broken, a_request())


def test_a_model_that_cannot_be_loaded_is_said_by_every_call(scheduler: Callable[..., Scheduler]) -> None:
    def prepare() -> Engine:
        raise ModelLoadError("no such file")

    broken = scheduler(prepare=prepare)
    with pytest.raises(ModelLoadError, match="no such file"):
        broken.wait_prepared()
    wait_until(lambda: not broken.ready)
    with pytest.raises(SchedulerStoppedError, match="no such file"):
        submit(broken, a_request())


def test_what_takes_too_long_is_given_up_wherever_it_is(
    scheduler: Callable[..., Scheduler], engine: SteppedEngine
) -> None:
    slow = scheduler(timeout=0.05)
    (running, _), (first, second) = submit(slow, a_request(max_tokens=1000), a_request("waiting"))
    wait_until(lambda: slow.running == 1)
    threading.Event().wait(0.06)
    engine.allow(1)
    assert isinstance(first.next(), Generated)
    assert first.next() == second.next() == TimedOut(0.05)
    wait_until(lambda: slow.running == 0)
    assert engine.removed == [running.key]
    assert engine.added == [None]


def test_stopping_fails_what_is_unfinished(scheduler: Callable[..., Scheduler], engine: SteppedEngine) -> None:
    ending = scheduler()
    _, listening = submit(ending, a_request(max_tokens=9), a_request())
    wait_until(lambda: ending.running == 1)
    engine.steps.put(None)
    engine.steps.put(None)
    ending.stop(timeout=SECONDS)
    events = [list(iter(each.next, Failed("the engine has ended"))) for each in listening]
    assert not any(isinstance(event, Finished) for some in events for event in some)
    assert not ending.ready

"""The one thread that owns the engine, and the queue in front of it.

Whoever wants tokens submits sequences from any thread and gets events through a callback. The queue is bounded (a full one
is an answer, not a wait) and fair: models take turns, so that a flood for one adapter does not starve the others. While
there is nothing to do the thread waits on a condition and uses no CPU.
"""

import itertools
import logging
import math
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from finetune_inference.engine.interface import Engine, Event, Failed, Finished, ModelLoadError, TimedOut, TokenRequest

log = logging.getLogger(__name__)

Listener = Callable[[Event], None]
"""Called in the scheduler's thread: must return at once and must not raise."""

MAX_FAILURES_IN_A_ROW = 3
"""Engine failures without a success in between after which the engine is given up: a device that fell over stays so."""
LONGEST_RETRY_AFTER = 30
"""Seconds; no client should be told to wait longer on a guess."""


class QueueFullError(Exception):
    """There is no room for the sequences."""

    def __init__(self, waiting: int, retry_after: int) -> None:
        super().__init__(f"{waiting} sequences wait already")
        self.waiting = waiting
        self.retry_after = retry_after


class SchedulerStoppedError(Exception):
    """The engine's thread has ended; the message says why."""


@dataclass(eq=False)
class Ticket:
    """A submitted sequence."""

    key: int
    request: TokenRequest
    listener: Listener
    deadline: float = math.inf
    """Monotonic seconds at which it is given up."""
    cancelled: bool = False
    started: float = field(default=0.0)
    """Monotonic seconds at which the engine took it."""


class FairQueue:
    """First in, first out for each model; models take turns."""

    def __init__(self) -> None:
        self._lanes: OrderedDict[str | None, deque[Ticket]] = OrderedDict()
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Ticket]:
        return itertools.chain.from_iterable(self._lanes.values())

    def push(self, ticket: Ticket) -> None:
        """Add at the end of the model's lane."""
        self._lanes.setdefault(ticket.request.adapter, deque()).append(ticket)
        self._length += 1

    def pop(self) -> Ticket:
        """Take from the lane whose turn it is. Raises KeyError if there is nothing."""
        model, lane = self._lanes.popitem(last=False)
        ticket = lane.popleft()
        if lane:
            self._lanes[model] = lane
        self._length -= 1
        return ticket

    def discard(self, ticket: Ticket) -> None:
        """Take out a ticket, wherever it is; nothing happens if it is not here."""
        lane = self._lanes.get(ticket.request.adapter)
        if lane is None or ticket not in lane:
            return
        lane.remove(ticket)
        self._length -= 1
        if not lane:
            del self._lanes[ticket.request.adapter]

    def drain(self) -> list[Ticket]:
        """Take everything."""
        return [self.pop() for _ in range(self._length)]


class Scheduler:
    """Owns the engine's thread from loading to the end."""

    def __init__(self, prepare: Callable[[], Engine], *, max_waiting: int, timeout: float = math.inf) -> None:
        """`timeout`: seconds that a sequence may take, waiting included."""
        self._prepare = prepare
        self._max_waiting = max_waiting
        self._timeout = timeout
        self._changed = threading.Condition()
        self._waiting = FairQueue()
        self._running: dict[int, Ticket] = {}
        self._keys = itertools.count()
        self._stopping = False
        self._failures = 0
        self._engine: Engine | None = None
        self._capacity = 1
        """Sequences that the engine works on at the same time; known once it is prepared."""
        self._seconds_per_sequence = 1.0
        self._prepared = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Begin to prepare the engine in the thread that will own it. Returns at once."""
        self._thread.start()

    def wait_prepared(self) -> None:
        """Wait until the engine is prepared. Raises what the preparation raised."""
        self._prepared.wait()
        if self._failure:
            raise self._failure

    @property
    def ready(self) -> bool:
        """The engine is prepared and its thread runs."""
        return self._prepared.is_set() and self._failure is None and self._thread.is_alive() and not self._stopping

    @property
    def failure(self) -> BaseException | None:
        """Why the engine's thread ended, if it ended by itself."""
        return self._failure

    @property
    def waiting(self) -> int:
        """Sequences that wait for the engine."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Sequences that the engine works on."""
        return len(self._running)

    @property
    def cached_tokens(self) -> int:
        """Tokens that the engine has taken room for."""
        return self._engine.cached_tokens if self._engine else 0

    def submit(self, sequences: Sequence[tuple[TokenRequest, Listener]]) -> list[Ticket]:
        """Queue sequences, all or none. Raises QueueFullError or SchedulerStoppedError."""
        with self._changed:
            if self._stopping or self._failure:
                raise SchedulerStoppedError(str(self._failure or "the server is stopping"))
            self.require_room(len(sequences))
            deadline = time.monotonic() + self._timeout
            tickets = [Ticket(next(self._keys), request, listener, deadline) for request, listener in sequences]
            for ticket in tickets:
                self._waiting.push(ticket)
            self._changed.notify()
        return tickets

    def require_room(self, sequences: int = 1) -> None:
        """Raise QueueFullError if so many would not be taken now."""
        room = self._max_waiting + max(0, self._capacity - len(self._running)) - len(self._waiting)
        if sequences > room:
            raise QueueFullError(len(self._waiting), self._retry_after())

    def cancel(self, tickets: Sequence[Ticket]) -> None:
        """Stop work on sequences; those that are complete do not mind. No event follows, not even an end."""
        with self._changed:
            for ticket in tickets:
                ticket.cancelled = True
                self._waiting.discard(ticket)
            self._changed.notify()

    def stop(self, timeout: float | None = None) -> None:
        """End the thread after the step it is at; unfinished sequences fail. Loading cannot be interrupted or waited for."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._prepared.is_set():
            self._thread.join(timeout)

    def _retry_after(self) -> int:
        """Seconds until those that wait have probably been taken into work."""
        seconds = self._seconds_per_sequence * len(self._waiting) / self._capacity
        return max(1, min(LONGEST_RETRY_AFTER, math.ceil(seconds)))

    def _run(self) -> None:
        try:
            self._engine = engine = self._prepare()
            self._capacity = engine.capacity
            self._prepared.set()
            while self._take_work(engine):
                self._step(engine)
        except ModelLoadError as error:
            self._failure = error
        except BaseException as error:
            # The thread's last words: probes and waiting requests need them.
            log.exception("the engine's thread ended")
            self._failure = error
        finally:
            self._prepared.set()
            self._fail_everything()

    def _take_work(self, engine: Engine) -> bool:
        """Wait for work, drop what was cancelled and admit what there is room for; False when it is time to end."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or self._waiting or self._running)
            if self._stopping:
                return False
            expired = self._expired()
            cancelled = [t for t in self._running.values() if t.cancelled]
            for ticket in cancelled:
                del self._running[ticket.key]
            admitted = []
            while len(self._waiting) and len(self._running) < engine.capacity:
                ticket = self._waiting.pop()
                ticket.started = time.monotonic()
                self._running[ticket.key] = ticket
                admitted.append(ticket)
        for ticket in cancelled:
            engine.remove(ticket.key)
        for ticket in expired:
            ticket.listener(TimedOut(self._timeout))
        for ticket in admitted:
            self._admit(engine, ticket)
        return True

    def _admit(self, engine: Engine, ticket: Ticket) -> None:
        """Hand a sequence to the engine. One that it cannot take fails alone: that says nothing about the engine."""
        try:
            engine.add(ticket.key, ticket.request)
        except Exception as error:
            log.exception("the engine did not take a sequence")
            self._deliver(ticket.key, Failed(f"{type(error).__name__}: {error}"))

    def _expired(self) -> list[Ticket]:
        """Give up what has taken too long. Looked at between steps, since whoever waits, waits for a step."""
        now = time.monotonic()
        expired = [t for t in (*self._running.values(), *self._waiting) if t.deadline <= now and not t.cancelled]
        for ticket in expired:
            ticket.cancelled = True
            self._waiting.discard(ticket)
        return expired

    def _step(self, engine: Engine) -> None:
        if not self._running:
            return
        try:
            events = engine.step()
        except Exception as error:
            self._failures += 1
            log.exception("the engine failed (%d in a row)", self._failures)
            self._fail_running(f"{type(error).__name__}: {error}")
            if self._failures >= MAX_FAILURES_IN_A_ROW:
                raise
            return
        self._failures = 0
        for key, event in events:
            self._deliver(key, event)

    def _deliver(self, key: int, event: Event) -> None:
        ticket = self._running[key]
        if isinstance(event, Finished | Failed):
            with self._changed:
                del self._running[key]
            # Moving average over about ten sequences.
            self._seconds_per_sequence += 0.1 * (time.monotonic() - ticket.started - self._seconds_per_sequence)
        if not ticket.cancelled:
            ticket.listener(event)

    def _fail_running(self, message: str) -> None:
        with self._changed:
            tickets = list(self._running.values())
            self._running.clear()
        for ticket in tickets:
            if not ticket.cancelled:
                ticket.listener(Failed(message))

    def _fail_everything(self) -> None:
        with self._changed:
            tickets = self._waiting.drain()
            self._stopping = True
        self._fail_running("the engine has ended")
        for ticket in tickets:
            ticket.listener(Failed("the engine has ended"))

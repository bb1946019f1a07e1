"""The thread that owns the engine, and the waiting queue in front of it.

Any thread may submit sequences; their events arrive through a callback. The queue is bounded: a full queue refuses at once
instead of blocking. It is fair: models take turns, so that many requests for one adapter do not starve the others. An idle
thread waits on a condition and uses no CPU.
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
"""Callback in the scheduler's thread; must return at once and must not raise."""

MAX_FAILURES_IN_A_ROW = 3
"""Consecutive engine failures after which the engine is stopped, because a failed device does not recover by itself."""
LONGEST_RETRY_AFTER = 30
"""Upper bound of the estimated Retry-After, in seconds."""


class QueueFullError(Exception):
    """The waiting queue has no room for the sequences."""

    def __init__(self, waiting: int, retry_after: int) -> None:
        super().__init__(f"the queue is full: {waiting} sequences are waiting")
        self.waiting = waiting
        self.retry_after = retry_after


class SchedulerStoppedError(Exception):
    """The engine's thread has ended; the message gives the reason."""


@dataclass(eq=False)
class Ticket:
    """A submitted sequence."""

    key: int
    request: TokenRequest
    listener: Listener
    deadline: float = math.inf
    """Monotonic seconds after which the sequence times out."""
    cancelled: bool = False
    started: float = field(default=0.0)
    """Monotonic seconds at which the sequence was added to the engine."""


class FairQueue:
    """Waiting queue: first in, first out for each model, and models take turns (round robin)."""

    def __init__(self) -> None:
        self._lanes: OrderedDict[str | None, deque[Ticket]] = OrderedDict()
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Ticket]:
        return itertools.chain.from_iterable(self._lanes.values())

    def push(self, ticket: Ticket) -> None:
        """Append to the lane of the request's model."""
        self._lanes.setdefault(ticket.request.adapter, deque()).append(ticket)
        self._length += 1

    def pop(self) -> Ticket:
        """Remove and return the first ticket of the next lane. Raises KeyError if the queue is empty."""
        model, lane = self._lanes.popitem(last=False)
        ticket = lane.popleft()
        if lane:
            self._lanes[model] = lane
        self._length -= 1
        return ticket

    def discard(self, ticket: Ticket) -> None:
        """Remove a ticket from any position; does nothing if the queue does not hold it."""
        lane = self._lanes.get(ticket.request.adapter)
        if lane is None or ticket not in lane:
            return
        lane.remove(ticket)
        self._length -= 1
        if not lane:
            del self._lanes[ticket.request.adapter]

    def drain(self) -> list[Ticket]:
        """Remove and return all tickets."""
        return [self.pop() for _ in range(self._length)]


class Scheduler:
    """Owner of the engine's thread, from loading to the end."""

    def __init__(self, prepare: Callable[[], Engine], *, max_waiting: int, timeout: float = math.inf) -> None:
        """Set limits. `prepare` makes the engine; `timeout` limits a sequence, in seconds, waiting included."""
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
        """Most running sequences; set when the engine is prepared."""
        self._seconds_per_sequence = 1.0
        self._prepared = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Start to prepare the engine in the thread that will own it. Returns at once."""
        self._thread.start()

    def wait_prepared(self) -> None:
        """Wait until the engine is prepared. Raises the exception of a failed preparation."""
        self._prepared.wait()
        if self._failure:
            raise self._failure

    @property
    def ready(self) -> bool:
        """True while the engine is prepared and its thread runs."""
        return self._prepared.is_set() and self._failure is None and self._thread.is_alive() and not self._stopping

    @property
    def failure(self) -> BaseException | None:
        """Exception that ended the engine's thread; None while it runs or was stopped."""
        return self._failure

    @property
    def waiting(self) -> int:
        """Number of sequences in the waiting queue."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Number of running sequences."""
        return len(self._running)

    @property
    def cached_tokens(self) -> int:
        """Tokens reserved in the engine's KV cache."""
        return self._engine.cached_tokens if self._engine else 0

    def submit(self, sequences: Sequence[tuple[TokenRequest, Listener]]) -> list[Ticket]:
        """Queue sequences, all or none. Raises QueueFullError or SchedulerStoppedError."""
        with self._changed:
            if self._stopping or self._failure:
                raise SchedulerStoppedError(str(self._failure or "The server is stopping."))
            self.require_room(len(sequences))
            deadline = time.monotonic() + self._timeout
            tickets = [Ticket(next(self._keys), request, listener, deadline) for request, listener in sequences]
            for ticket in tickets:
                self._waiting.push(ticket)
            self._changed.notify()
        return tickets

    def require_room(self, sequences: int = 1) -> None:
        """Raise QueueFullError if the queue has no room for that many sequences."""
        room = self._max_waiting + max(0, self._capacity - len(self._running)) - len(self._waiting)
        if sequences > room:
            raise QueueFullError(len(self._waiting), self._retry_after())

    def cancel(self, tickets: Sequence[Ticket]) -> None:
        """Cancel sequences; completed ones are ignored. No further event follows, not even an end."""
        with self._changed:
            for ticket in tickets:
                ticket.cancelled = True
                self._waiting.discard(ticket)
            self._changed.notify()

    def stop(self, timeout: float | None = None) -> None:
        """End the thread after its current step; unfinished sequences fail. Does not interrupt loading or wait for it."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._prepared.is_set():
            self._thread.join(timeout)

    def _retry_after(self) -> int:
        """Estimate the seconds until all waiting sequences run."""
        seconds = self._seconds_per_sequence * len(self._waiting) / self._capacity
        return max(1, min(LONGEST_RETRY_AFTER, math.ceil(seconds)))

    def _run(self) -> None:
        try:
            self._engine = engine = self._prepare()
            self._capacity = engine.capacity
            self._prepared.set()
            while self._admit_work(engine):
                self._step(engine)
        except ModelLoadError as error:
            self._failure = error
        except BaseException as error:
            # Probes and waiting requests report this reason.
            log.exception("The engine's thread ended")
            self._failure = error
        finally:
            self._prepared.set()
            self._fail_everything()

    def _admit_work(self, engine: Engine) -> bool:
        """Wait for work, drop cancelled sequences, and admit waiting ones up to the capacity. Returns False to end the thread."""
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
        """Add a sequence to the engine. If that raises, only this sequence fails, because the engine may be fine."""
        try:
            engine.add(ticket.key, ticket.request)
        except Exception as error:
            log.exception("The engine rejected a sequence")
            self._deliver(ticket.key, Failed(f"{type(error).__name__}: {error}"))

    def _expired(self) -> list[Ticket]:
        """Cancel and return the sequences past their deadline. Runs between steps."""
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
            log.exception("The engine failed (%d in a row)", self._failures)
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
            # Exponential moving average over about ten sequences.
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

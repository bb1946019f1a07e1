"""A keyed work queue: an object is worked on by one worker at a time, and any number of events in between is one more reconcile.

Like client-go's rate-limited queue, in one place: coalescing, delayed adds, backoff per key, and a hold that keeps a key
back for a moment after its children were created.
"""

import asyncio
import contextlib
import heapq
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)

FIRST_BACKOFF_SECONDS = 0.5
"""Delay after the first failure; doubles with each."""
MAX_BACKOFF_SECONDS = 15.0
"""Cap of the backoff: with minutes, one hiccup would look like a dead operator."""


class WorkQueue(Generic[Key]):
    """Not thread-safe: other threads add through `loop.call_soon_threadsafe`."""

    def __init__(self, clock: Callable[[], float] | None = None) -> None:
        self._clock = clock or asyncio.get_running_loop().time
        self._due: dict[Key, float] = {}
        self._heap: list[tuple[float, int, Key]] = []
        self._counter = 0
        self._active: set[Key] = set()
        self._after: dict[Key, float] = {}
        self._held: dict[Key, float] = {}
        self._failures: dict[Key, int] = {}
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        """Keys that are due now or later."""
        return len(self._due)

    @property
    def overdue(self) -> int:
        """Keys that wait for a worker now."""
        now = self._clock()
        return sum(due <= now for due in self._due.values())

    def add(self, key: Key, delay: float = 0.0) -> None:
        """Request a reconcile of `key`, `delay` seconds from now or earlier. Two requests are one."""
        due = self._clock() + max(0.0, delay)
        if key in self._active:
            self._after[key] = min(due, self._after.get(key, due))
            return
        self._schedule(key, due)

    def hold(self, key: Key, seconds: float) -> None:
        """Keep the key from being taken for a while, whatever happens."""
        self._held[key] = self._clock() + seconds

    def take_due(self) -> Key | None:
        """Take a key that is due, active until `done`; None if there is none."""
        now = self._clock()
        while self._heap and self._heap[0][0] <= now:
            due, _, key = heapq.heappop(self._heap)
            if self._due.get(key) != due:
                continue  # Superseded by an earlier date.
            held_until = self._held.pop(key, 0.0)
            if held_until > now:
                del self._due[key]
                self._held[key] = held_until
                self._schedule(key, held_until)
                continue
            del self._due[key]
            self._active.add(key)
            return key
        return None

    async def take(self) -> Key:
        """Wait for a key that is due."""
        while (key := self.take_due()) is None:
            self._changed.clear()
            pause = self._heap[0][0] - self._clock() if self._heap else None
            # Not wait_for, which until Python 3.12 could lose the cancellation that comes together with a change.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if pause is None else max(0.0, pause)):
                    await self._changed.wait()
        return key

    def done(self, key: Key, *, failed: bool = False, requeue_after: float | None = None) -> None:
        """End the reconcile. A failed one is repeated with growing delay; a successful one forgets earlier failures."""
        self._active.discard(key)
        dates = [self._after.pop(key)] if key in self._after else []
        if failed:
            failures = self._failures[key] = self._failures.get(key, 0) + 1
            # Events that arrived meanwhile do not shorten the backoff, or a broken object would spin.
            dates = [self._clock() + backoff_seconds(failures)]
        else:
            self._failures.pop(key, None)
            if requeue_after is not None:
                dates.append(self._clock() + max(0.0, requeue_after))
        if dates:
            self._schedule(key, min(dates))

    def _schedule(self, key: Key, due: float) -> None:
        known = self._due.get(key)
        if known is not None and known <= due:
            return
        self._due[key] = due
        self._counter += 1
        heapq.heappush(self._heap, (due, self._counter, key))
        self._changed.set()


def backoff_seconds(failures: int) -> float:
    """Return the delay after the n-th failure in a row."""
    return float(min(MAX_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2.0 ** min(failures - 1, 10)))

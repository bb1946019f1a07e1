"""Progress of a command for people: one line for each step, with its seconds.

Long steps (a Go build, an image layer) also say that they are alive: on a terminal the line counts up, elsewhere a new
line appears every `QUIET_SECONDS`, so that a log shows where the time went and nobody takes a slow build for a hang.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

QUIET_SECONDS = 20.0
"""The longest silence of a step that does not write to a terminal."""


class Step:
    """A running step; `note` says how it ended, in a few words."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.started = time.monotonic()
        self.remark = ""
        self.detail = ""
        """Progress within the step, in a few words; shown while it runs."""

    def note(self, remark: str) -> None:
        self.remark = remark

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started


@contextmanager
def step(title: str) -> Iterator[Step]:
    """Announce a step while it runs and print its duration at the end, also when it fails."""
    current = Step(title)
    finished = threading.Event()
    reporter = threading.Thread(target=_report_elapsed, args=(current, finished), daemon=True)
    reporter.start()
    outcome = "FAILED"
    try:
        yield current
        outcome = current.remark or "done"
    finally:
        finished.set()
        reporter.join()
        start_of_line = "\r\033[K" if sys.stderr.isatty() else ""
        say(f"{start_of_line}{current.seconds:7.1f} s  {title}: {outcome}")


def say(line: str) -> None:
    """Progress goes to stderr: stdout belongs to what a command is asked for (tables, `export` lines)."""
    print(line, file=sys.stderr, flush=True)


def _report_elapsed(current: Step, finished: threading.Event) -> None:
    on_terminal = sys.stderr.isatty()
    while not finished.wait(1.0 if on_terminal else QUIET_SECONDS):
        if on_terminal:
            print(
                f"\r\033[K{current.seconds:7.0f} s  {current.title} ... {current.detail}",
                end="",
                file=sys.stderr,
                flush=True,
            )
        else:
            say(f"{current.seconds:7.0f} s  {current.title} ... {current.detail or 'still running'}")

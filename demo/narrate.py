"""Output for people: numbered stages with their seconds, and one line that refreshes itself on a terminal."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

QUIET_SECONDS = 10.0
"""Where output is no terminal, a refreshing line is printed this often, and whenever its first word changes."""
INDENT = " " * 8


class Narrator:
    """Announces stages and keeps how long each took."""

    def __init__(self, stages: int) -> None:
        self.seconds: dict[str, float] = {}
        """Seconds of each finished stage by its name."""
        self.current = ""
        """Title of the running stage; what a failure is blamed on."""
        self._stages = stages

    @contextmanager
    def stage(self, name: str, title: str) -> Iterator[None]:
        """Run one stage; `name` is for the figures, `title` for people."""
        self.current = title
        started = time.monotonic()
        say(f"\n[{len(self.seconds) + 1}/{self._stages}] {title}")
        yield
        self.seconds[name] = time.monotonic() - started
        say(f"{INDENT}{self.seconds[name]:.0f} s")


class Line:
    """One line that is written over on a terminal, and repeated now and then elsewhere."""

    def __init__(self) -> None:
        self._tty = sys.stdout.isatty()
        self._shown_at = 0.0
        self._key = ""
        self._open = False

    def show(self, key: str, text: str) -> None:
        """Show `text`; a new `key` (for example the phase) is worth a line of its own."""
        now = time.monotonic()
        if self._tty:
            if self._open and key != self._key:
                print()
            print(f"\r\033[K{INDENT}{text}", end="", flush=True)
            self._open = True
        elif key != self._key or now - self._shown_at >= QUIET_SECONDS:
            say(INDENT + text)
            self._shown_at = now
        self._key = key

    def close(self) -> None:
        """End the refreshing line."""
        if self._open:
            print(flush=True)
            self._open = False


def say(text: str = "") -> None:
    """Print at once, also into a pipe."""
    print(text, flush=True)


def note(text: str) -> None:
    """Print below the current stage."""
    say(INDENT + text)

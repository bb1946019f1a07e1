"""Which kills happen: their sorts in fixed shares, the rest drawn from a seed."""

import random
import signal
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import cycle, islice
from typing import Final

FURTHEST: Final = 9
"""Steps after its start at which an attempt is killed, at most: some saves lie between, and an end is reached."""


class Moment(StrEnum):
    """When a kill comes."""

    STEP = "after a step"
    SAVE = "while a save is seen on the volume"
    OPERATION = "before a file operation on the volume"
    ADAPTER = "before a file operation on the adapter"


@dataclass(frozen=True)
class Kill:
    """One planned kill."""

    signal: signal.Signals
    moment: Moment
    steps: int = 1
    """STEP: how many steps the attempt finishes first."""
    delay: float = 0.0
    """STEP, SAVE: share of a step's or a save's usual time that passes before the signal."""
    operation: int = 0
    """OPERATION, ADAPTER: which one of the attempt, from 1."""
    is_cold: bool = False
    """In a new interpreter instead of a warm one."""


SORTS: Final = (
    Moment.STEP,
    Moment.OPERATION,
    Moment.SAVE,
    Moment.STEP,
    Moment.OPERATION,
    Moment.ADAPTER,
    Moment.STEP,
    Moment.OPERATION,
    Moment.SAVE,
    Moment.STEP,
)
"""Of ten kills."""


def make_plan(count: int, operations: int, adapter_operations: int, *, seed: int, cold: int = 0) -> list[Kill]:
    """Kills of all sorts, shuffled; `cold` of those after a step are in a new interpreter.

    `operations` and `adapter_operations` are how many file operations an undisturbed run does.
    """
    draw = random.Random(seed)  # noqa: S311

    def draw_kill(moment: Moment) -> Kill:
        number = signal.SIGTERM if draw.random() < 0.4 else signal.SIGKILL
        match moment:
            case Moment.STEP:
                return Kill(number, moment, steps=draw.randint(1, FURTHEST), delay=draw.random())
            case Moment.SAVE:
                return Kill(number, moment, delay=draw.uniform(0, 1.2))
            case Moment.ADAPTER:
                return Kill(signal.SIGKILL, moment, operation=draw.randint(1, adapter_operations))
            case Moment.OPERATION:
                # Of a part of them: attempts that go on from a checkpoint have fewer.
                return Kill(signal.SIGKILL, moment, operation=draw.randint(1, operations // 3))

    kills = [draw_kill(moment) for moment in islice(cycle(SORTS), count)]
    draw.shuffle(kills)
    after_steps = [index for index, kill in enumerate(kills) if kill.moment is Moment.STEP]
    for index in after_steps[:cold]:
        kills[index] = replace(kills[index], is_cold=True)
    return kills

"""Kills trainings a hundred times and measures what that and the saving cost: `make kill-test-trainer`.

Writes build/figures/kill-trainer.json; ends with 1 when a bound is missed.
"""

import argparse
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

import transformers.utils.logging

from lab import figures
from lab.fixtures.tiny_model import make_tiny_model
from lab.kill.kill_campaign import SAVE_INTERVAL, STEPS, Campaign, Killed, Run, run_campaign
from lab.kill.kill_plan import Moment
from lab.kill.saving_cost import SavingCost, measure_saving

HEADER = (
    "| run | kills | TERM | KILL | inside a save | most repeated TERM | KILL | adapter | leftovers | seconds |\n"
    "|---:|---:|---:|---:|---:|---:|---:|---|---|---:|"
)


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="how many kills (default: %(default)s)")
    parser.add_argument("--cold", type=int, default=10, help="of them, in a new interpreter (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=4, help="chooses kinds, steps and offsets (default: %(default)s)")
    arguments = parser.parse_args()
    # A model this small gains nothing from a second thread; trainers inherit this.
    os.environ["OMP_NUM_THREADS"] = "1"
    transformers.utils.logging.disable_progress_bar()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="kill-trainer-") as name:
        folder = Path(name)
        runs = _kill(folder, arguments.kills, arguments.seed, arguments.cold)
        print("\nWhat saving costs a training that nobody kills", flush=True)
        cost = measure_saving(folder / "cost")
    measured = _figures(runs, cost)
    path = figures.record("kill-trainer", measured, time.monotonic() - started)
    print(
        "\n" + figures.table(figures.load(path.parent) and {"kill-trainer": figures.load(path.parent)["kill-trainer"]})
    )
    print(f"{time.monotonic() - started:.0f} s; figures are in {path.relative_to(figures.REPOSITORY)}")
    return 1 if any(figure.falls_short for figure in measured) else 0


def _kill(folder: Path, count: int, seed: int, cold: int) -> list[Run]:
    print(
        f"{count} kills of runs of {STEPS} steps, a checkpoint every {SAVE_INTERVAL}, seed {seed}\n\n{HEADER}",
        flush=True,
    )
    total = 0

    def show(number: int, run: Run) -> None:
        nonlocal total
        total += len(run.kills)
        print(f"{_row(number, run)}  {total}/{count}", flush=True)

    campaign = Campaign(make_tiny_model(folder / "model"), folder)
    return run_campaign(campaign, count, seed, cold=cold, report=show)


def _row(number: int, run: Run) -> str:
    cells = [
        number,
        len(run.kills),
        len(_by(run.kills, signal.SIGTERM)),
        len(_by(run.kills, signal.SIGKILL)),
        sum(k.is_inside_save for k in run.kills),
        run.most_repeated(signal.SIGTERM),
        run.most_repeated(signal.SIGKILL),
        "identical" if run.is_identical else "OTHER",
        ", ".join(run.leftovers) or "none",
        f"{run.seconds:.0f}",
    ]
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def _by(kills: list[Killed], number: signal.Signals) -> list[Killed]:
    return [killed for killed in kills if killed.kill.signal is number]


def _figures(runs: list[Run], cost: SavingCost) -> list[figures.Figure]:
    kills = [killed for run in runs for killed in run.kills]
    terminated = _by(kills, signal.SIGTERM)
    return [
        figures.Figure("kills", len(kills), "kills", "higher", must=100),
        figures.Figure("kills inside a save", sum(k.is_inside_save for k in kills), "kills", "higher", must=20),
        figures.Figure(
            "of these, inside a save of the adapter",
            sum(k.is_inside_save and k.kill.moment is Moment.ADAPTER for k in kills),
            "kills",
            "higher",
            must=5,
        ),
        figures.Figure("runs with the undisturbed adapter, bit by bit", _share(runs), "%", "higher", must=100),
        figures.Figure("things left on the volume", sum(len(r.leftovers) for r in runs), "paths", "lower", must=0),
        figures.Figure(
            "steps repeated after KILL, most",
            max(run.most_repeated(signal.SIGKILL) for run in runs),
            "steps",
            "lower",
            must=SAVE_INTERVAL,
            peer="steps between checkpoints",
        ),
        figures.Figure(
            "steps repeated after TERM, most",
            max(r.most_repeated(signal.SIGTERM) for r in runs),
            "steps",
            "lower",
            must=0,
        ),
        figures.Figure(
            "from TERM to the end of the process, longest", max(k.seconds for k in terminated), "s", "lower", must=30
        ),
        figures.Figure("training stands still for saving", cost.blocked, "% of training", "lower", must=2, aim=0.5),
        figures.Figure("CPU time of the saving thread", cost.writing, "% of training", "lower", must=2, aim=0.5),
    ]


def _share(runs: list[Run]) -> float:
    return 100 * sum(run.is_identical for run in runs) / len(runs)


if __name__ == "__main__":
    sys.exit(main())

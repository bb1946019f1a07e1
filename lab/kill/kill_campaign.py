"""Many kills of small training runs, and what each left behind.

A run is killed, resumed, killed again ... until it ends with an adapter; then the next run begins, until all planned kills
have happened. Each run must end with the very bytes of an undisturbed one and leave nothing else on the volume.
"""

import shutil
import signal
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from finetune_api.artifacts import MANIFEST_FILE, read_verified
from finetune_api.contract import ExitCode
from finetune_api.outcome import Outcome
from finetune_trainer.store.run_store import RunStore
from lab.fixtures.tiny_model import as_jsonl, chat_rows
from lab.fixtures.training_runs import a_training_config, an_attempt, write_config
from lab.kill import kill_points
from lab.kill.kill_plan import Kill, Moment, make_plan
from lab.kill.trainer_process import Attempt, start_cold, start_warm

SAVE_INTERVAL: Final = 5
"""Optimizer steps between two checkpoints."""
STEPS: Final = 60
"""Optimizer steps of a run."""


@dataclass
class Killed:
    """What became of a kill."""

    kill: Kill
    last_step: int | None
    """Last step that the attempt finished, or went on from; None if it was killed before training."""
    is_inside_save: bool
    seconds: float
    """From the signal to the end of the process."""
    repeated: int = 0
    """Steps that the next attempt did again."""


@dataclass
class Run:
    """A run that was killed until it ended."""

    kills: list[Killed] = field(default_factory=list)
    is_identical: bool = False
    leftovers: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def most_repeated(self, number: signal.Signals) -> int:
        """Most steps that were done again after one kill by a signal."""
        return max((k.repeated for k in self.kills if k.kill.signal is number), default=0)


@dataclass(frozen=True)
class Undisturbed:
    """What a run that nobody kills is like."""

    files: dict[str, bytes]
    """Content of its adapter's files, without the manifest, which names the attempt."""
    operations: int
    """File operations on the volume."""
    adapter_operations: int
    """Those of them on the adapter, staged and committed."""
    save_seconds: float
    """How long a checkpoint is seen on the volume before it is committed."""
    step_seconds: float


class Campaign:
    """Runs of the tiny model in a folder of their own."""

    def __init__(self, model: Path, folder: Path) -> None:
        self._model = model
        self._folder = folder
        # One after the other in the same place, because an adapter's record has its configuration, which names the place.
        self._volume = folder / "volume"
        self._termination_log = folder / "termination-log"

    def run_undisturbed(self) -> Undisturbed:
        """One run in a new interpreter and one in a warm process, which must agree."""
        _require_success(self._start("cold", 1))
        files = self._adapter_files()
        self._clear()
        warm = self._start("warm", 1, Kill(signal.SIGKILL, Moment.OPERATION))
        save_seconds = _watch_saves(warm, self._store(1))
        _require_success(warm)
        assert files == self._adapter_files(), "a warm trainer makes another adapter than a cold one"
        self._clear()
        again = self._start("again", 1, Kill(signal.SIGKILL, Moment.ADAPTER))
        _require_success(again)
        self._clear()
        return Undisturbed(
            files, _operations(warm), _operations(again), save_seconds, _seconds_of_training(warm) / STEPS
        )

    def run_killed(self, name: str, plan: deque[Kill], undisturbed: Undisturbed) -> Run:
        """Kill one run as planned until it ends; kills that come too late for it stay in the plan."""
        started = time.monotonic()
        run = Run()
        while plan:
            attempt = self._start(name, len(run.kills) + 1, plan[0])
            killed = self._execute(attempt, plan[0], self._store(len(run.kills) + 1), undisturbed)
            _count_repeated(run.kills, attempt)
            if killed is None:
                break
            run.kills.append(killed)
            plan.popleft()
        else:
            last = self._start(name, len(run.kills) + 1)
            _require_success(last)
            _count_repeated(run.kills, last)
        run.is_identical = self._adapter_files() == undisturbed.files
        run.leftovers = self._leftovers()
        self._clear()
        run.seconds = time.monotonic() - started
        return run

    def _start(self, name: str, number: int, kill: Kill | None = None) -> Attempt:
        """Start an attempt; warm if it is to be killed, unless the kill says otherwise."""
        config = a_training_config(
            self._model,
            self._volume,
            job=an_attempt(number),
            # Dropout, so that the state of the random numbers matters; eleven rows, so that epochs end within a step.
            lora={"dropout": 0.2},
            dataset={"inline": as_jsonl(chat_rows(11))},
            # Evaluated in between, so that the best adapter so far is part of what must survive.
            evaluation={"inline": as_jsonl(chat_rows(3))},
            evaluationSettings={"evalSteps": 7},
            hyperparameters={"batchSize": 4, "learningRate": 0.001, "maxSteps": STEPS},
            checkpoint={"everySteps": SAVE_INTERVAL},
        )
        environment = {
            "FINETUNE_CONFIG_PATH": str(write_config(config, self._folder / "config.json")),
            "FINETUNE_TERMINATION_LOG": str(self._termination_log),
            "FINETUNE_BROKER_URL": "",
            "FINETUNE_LOG_LEVEL": "DEBUG",  # says when each step is finished
        }
        self._termination_log.unlink(missing_ok=True)
        log = self._folder / f"{name}-attempt-{number}.log"
        match kill:
            case None | Kill(is_cold=True):
                return start_cold(log, environment)
            case Kill(moment=Moment.OPERATION):
                return start_warm(log, environment, self._volume, kill.operation)
            case Kill(moment=Moment.ADAPTER):
                return start_warm(log, environment, self._store(number).adapter.parent, kill.operation)
            case _:
                return start_warm(log, environment)

    def _store(self, number: int) -> RunStore:
        return RunStore(self._volume, "support-tone", "uid-1", number)

    def _clear(self) -> None:
        shutil.rmtree(self._volume)

    def _execute(self, attempt: Attempt, kill: Kill, store: RunStore, usual: Undisturbed) -> Killed | None:
        """Kill an attempt as planned; None if it ended before."""
        is_inside_save = False
        match kill.moment:
            case Moment.STEP:
                attempt.wait_until(lambda: len(attempt.steps()) >= kill.steps)
                time.sleep(kill.delay * usual.step_seconds)
            case Moment.SAVE:
                attempt.wait_until(lambda: _is_saving(store))
                time.sleep(kill.delay * usual.save_seconds)
            case _:
                attempt.wait_until(lambda: False)
        sent = time.monotonic()
        if kill.moment in (Moment.STEP, Moment.SAVE) and kill.signal is signal.SIGKILL:
            # What is on the volume once it stands still is what it leaves.
            attempt.send(signal.SIGSTOP)
            is_inside_save = _is_saving(store)
        attempt.send(kill.signal)
        code = attempt.exit_code()
        if code == ExitCode.SUCCEEDED:
            return None
        expected = ExitCode.INTERRUPTED if kill.signal is signal.SIGTERM else -signal.SIGKILL
        assert code == expected, f"{kill} ended with {code} instead of {expected}:\n{attempt.log()[-3000:]}"
        if kill.signal is signal.SIGTERM:
            self._require_checkpoint(store, attempt)
        _, found, operation = attempt.log().rpartition(kill_points.REPORT)
        if found:
            is_inside_save = _is_part_of_save(operation)
        return Killed(kill, _last_step(attempt), is_inside_save, time.monotonic() - sent)

    def _require_checkpoint(self, store: RunStore, attempt: Attempt) -> None:
        """After SIGTERM the Outcome names a checkpoint of the last step, and that is on the volume."""
        newest = store.newest_checkpoint()
        outcome = Outcome.model_validate_json(self._termination_log.read_text())
        assert newest is not None
        assert newest.manifest.step == outcome.step == outcome.checkpoint_step == _last_step(attempt), outcome

    def _adapter_files(self) -> dict[str, bytes]:
        adapter = self._store(1).adapter
        manifest, _ = read_verified(adapter)
        assert {e.path for e in manifest.files} | {MANIFEST_FILE} == {p.name for p in adapter.iterdir()}
        return {entry.path: (adapter / entry.path).read_bytes() for entry in manifest.files}

    def _leftovers(self) -> list[str]:
        """Whatever is on the volume beside the adapter and the fence."""
        adapter = self._store(1).adapter
        wanted = {"support-tone", "support-tone/uid-1", ".jobs", ".jobs/uid-1", ".jobs/uid-1/attempt"}
        found = {str(path.relative_to(self._volume)) for path in self._volume.rglob("*") if path.parent != adapter}
        return sorted(found ^ wanted)


def _last_step(attempt: Attempt) -> int | None:
    steps = attempt.steps()
    return steps[-1] if steps else attempt.from_step()


def _is_saving(store: RunStore) -> bool:
    """Whether a checkpoint or the adapter is half-written."""
    return store.adapter_staging.exists() or any(store.checkpoint_staging.glob("step-*"))


def _is_part_of_save(operation: str) -> bool:
    event, path = operation.split(maxsplit=1)
    return ".partial-" in path or event in ("os.remove", "os.rmdir", "shutil.rmtree")


def _watch_saves(attempt: Attempt, store: RunStore) -> float:
    """How long the first checkpoint is half-written."""
    attempt.wait_until(lambda: _is_saving(store))
    started = time.monotonic()
    attempt.wait_until(lambda: not _is_saving(store))
    return time.monotonic() - started


def _count_repeated(kills: list[Killed], attempt: Attempt) -> None:
    """Note with the latest kill that hit a training from where an attempt went on."""
    from_step = attempt.from_step()
    hit = next((k for k in reversed(kills) if k.last_step is not None), None)
    if from_step is not None and hit is not None and hit.last_step is not None:
        hit.repeated = hit.last_step - from_step


def _require_success(attempt: Attempt) -> None:
    code = attempt.exit_code()
    assert code == ExitCode.SUCCEEDED, f"an undisturbed attempt ended with {code}:\n{attempt.log()[-3000:]}"


def _operations(attempt: Attempt) -> int:
    return int(attempt.log().rpartition(kill_points.COUNT)[2])


def _seconds_of_training(attempt: Attempt) -> float:
    return float(attempt.log().split("training ended", 1)[1].split("seconds=", 1)[1].split()[0])


def run_campaign(
    campaign: Campaign, count: int, seed: int, *, cold: int, report: Callable[[int, Run], None]
) -> list[Run]:
    """Runs until `count` kills have happened; `report` hears of each run with its number."""
    undisturbed = campaign.run_undisturbed()
    plan = deque(make_plan(count, undisturbed.operations, undisturbed.adapter_operations, seed=seed, cold=cold))
    runs: list[Run] = []
    while plan:
        runs.append(campaign.run_killed(f"run-{len(runs) + 1}", plan, undisturbed))
        report(len(runs), runs[-1])
    return runs

"""Mutation score of the operator's decisions and builders: the share of small faults that their fast tests notice.

The tests run once unchanged, which shows the functions that each test calls. Then each mutant gets a process of its own,
forked from one that has imported pytest and the libraries: it imports the changed file and runs the tests that call the
changed function, quick ones first, until one fails. Code that runs at import concerns all tests of its package.
mutmut and cosmic-ray start a whole pytest for every mutant and have no seeded sample, hence a tool of our own.
"""

import argparse
import contextlib
import faulthandler
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import random
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType, ModuleType
from typing import Any

import hypothesis
import pytest

from lab.figures import REPOSITORY, Figure, record
from lab.mutation.mutants import Mutant, find_mutants

SOURCE = REPOSITORY / "operator" / "src"
TARGETS = ("finetune_operator/reconcile", "finetune_operator/resources", "finetune_gateway/translate.py")
TESTS = ("tests/unit/operator", "tests/golden", "tests/unit/gateway")
MUST = 0.95
SAMPLE = 200
SEED = 20261129
OUTPUT = REPOSITORY / "build" / "mutation"
CHANGING = ("finetune_operator", "finetune_gateway", "support", "test", "conftest", "lab", "__main__")
"""Modules that every process imports for itself: the mutated ones, and those that import them."""


@dataclass
class Recorder:
    """pytest plugin that notes for each test its seconds and the functions that it calls."""

    seconds: dict[str, float] = field(default_factory=dict)
    callers: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """Tests by function (`path:first line`). A path without a test's name means all tests of the file."""
    _seen: set[CodeType] = field(default_factory=set)
    _current: str = ""

    def __enter__(self) -> None:
        threading.settrace(self._trace)
        sys.settrace(self._trace)

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _trace(self, frame: FrameType, _event: str, _arg: object) -> None:
        code = frame.f_code
        if code not in self._seen:
            self._seen.add(code)
            if code.co_filename.startswith(str(SOURCE)):
                self.callers[f"{code.co_filename}:{code.co_firstlineno}"].append(self._current)

    def _switch(self, context: str) -> None:
        self._current, self._seen = context, set()

    @pytest.hookimpl(wrapper=True)
    def pytest_make_collect_report(self, collector: pytest.Collector) -> Iterator[None]:
        self._switch(collector.nodeid)
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self._switch(item.nodeid)
        started = time.monotonic()
        result = yield
        self.seconds[item.nodeid] = time.monotonic() - started
        return result


@dataclass
class Selection:
    """pytest plugin that runs the given tests only, quick ones first, and remembers the one that failed."""

    seconds: dict[str, float]
    failed: str = "collection"

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = sorted((i for i in items if i.nodeid in self.seconds), key=lambda i: self.seconds[i.nodeid])
        for item in items:
            item.add_marker(pytest.mark.timeout(30 + 10 * self.seconds[item.nodeid]), append=False)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed = report.nodeid


class MutantLoader(importlib.machinery.SourceFileLoader, importlib.abc.MetaPathFinder):
    """Finds one module, and loads it with the mutant's code."""

    def __init__(self, mutant: Mutant) -> None:
        parts = mutant.path.relative_to(SOURCE).with_suffix("").parts
        super().__init__(".".join(parts[:-1] if parts[-1] == "__init__" else parts), str(mutant.path))
        self._code = mutant.compile()

    def find_spec(self, fullname: str, path: object, target: ModuleType | None = None) -> Any:
        return (
            importlib.util.spec_from_file_location(fullname, self.path, loader=self) if fullname == self.name else None
        )

    def get_code(self, fullname: str) -> CodeType:
        return self._code


@dataclass(frozen=True)
class Baseline:
    """What the unchanged run has shown."""

    seconds: dict[str, float]
    callers: dict[str, list[str]]
    modules: list[str]

    def tests_of(self, mutant: Mutant) -> dict[str, float]:
        """Return the seconds of the tests that may notice the mutant."""
        if mutant.function is None:
            package = str(SOURCE / mutant.path.relative_to(SOURCE).parts[0])
            files = {c.split("::")[0] for at, cs in self.callers.items() if at.startswith(package) for c in cs}
            return {test: s for test, s in self.seconds.items() if test.split("::")[0] in files}
        contexts = set(self.callers.get(f"{mutant.path}:{mutant.function}", ()))
        return {test: s for test, s in self.seconds.items() if test in contexts or test.split("::")[0] in contexts}


def run_in_child(log: Path, work: Callable[[], int]) -> int:
    """Fork; in the child send all output to `log`, and end with the status that `work` returns. Return its process id."""
    if process := os.fork():
        return process
    status = 70
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        # Shrinking finds a nicer example of a failure, and one run of the tests has to be like another.
        phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
        hypothesis.settings.register_profile("mutation", derandomize=True, database=None, phases=phases)
        hypothesis.settings.load_profile("mutation")
        status = work()
    finally:
        sys.stdout.flush()
        os._exit(status)


def run_pytest(tests: Sequence[str], plugin: object) -> int:
    """Run tests in this process. Return pytest's exit status."""
    # No limit of seconds: tracing makes the unchanged run slow, and each mutant's tests have limits of their own.
    return int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "--timeout=0", *tests], plugins=[plugin]))


def measure_baseline(tests: Sequence[str]) -> Baseline:
    """Run the unchanged tests in a child. End the program if one of them fails."""
    path, log = OUTPUT / "baseline.json", OUTPUT / "baseline.log"

    def work() -> int:
        recorder = Recorder()
        with recorder:
            status = run_pytest(tests, recorder)
        modules = [name for name in sys.modules if not name.startswith(CHANGING)]
        path.write_text(json.dumps([recorder.seconds, recorder.callers, modules]))
        return status

    if os.waitpid(run_in_child(log, work), 0)[1] != 0:
        raise SystemExit(f"the unchanged tests fail; see {log}")
    return Baseline(*json.loads(path.read_text()))


def try_mutant(mutant: Mutant, tests: dict[str, float], log: Path) -> int:
    """Start a child that runs `tests` with the mutant. Return its process id."""

    def work() -> int:
        if not tests:
            return 0
        faulthandler.dump_traceback_later(300 + 10 * sum(tests.values()), exit=True)
        sys.meta_path.insert(0, MutantLoader(mutant))
        selection = Selection(tests)
        status = run_pytest(sorted({test.split("::")[0] for test in tests}), selection)
        print(selection.failed if status else "")
        return status

    return run_in_child(log, work)


def try_all(mutants: Sequence[Mutant], baseline: Baseline, processes: int) -> list[Mutant]:
    """Run the mutants, `processes` at a time. Return the survivors."""
    running: dict[int, Mutant] = {}
    survivors, waiting, started = [], list(enumerate(mutants)), time.monotonic()
    while waiting or running:
        while waiting and len(running) < processes:
            number, mutant = waiting.pop(0)
            running[try_mutant(mutant, baseline.tests_of(mutant), OUTPUT / f"{number:04}.log")] = mutant
        process, status = os.wait()
        mutant = running.pop(process)
        if status == 0:
            survivors.append(mutant)
            print(f"survived {mutant.path.relative_to(SOURCE)}:{mutant.line}  {mutant.describe()}", flush=True)
        done = len(mutants) - len(waiting) - len(running)
        if done % 20 == 0:
            print(f"{done} of {len(mutants)}, {time.monotonic() - started:.0f} s", flush=True)
    return survivors


def table(mutants: Sequence[Mutant], survivors: Sequence[Mutant]) -> str:
    """Return the scores by file."""
    all_, alive = (Counter(str(m.path.relative_to(SOURCE)) for m in group) for group in (mutants, survivors))
    lines = ["| file | mutants | killed | score |", "|---|---:|---:|---:|"]
    for name, count in sorted(all_.items()):
        killed = count - alive[name]
        lines.append(f"| {name} | {count} | {killed} | {killed / count:.0%} |")
    return "\n".join(lines)


def main() -> int:
    """Entry point; ends with 1 when the sample's score is below the bar."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", default=TARGETS, help=f"files or folders below {SOURCE}")
    parser.add_argument("--tests", nargs="*", default=TESTS)
    parser.add_argument("--sample", type=int, default=SAMPLE, help="number of mutants; 0 means all")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    os.chdir(REPOSITORY)
    OUTPUT.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    files = [f for path in options.paths for f in (sorted((SOURCE / path).rglob("*.py")) or [SOURCE / path])]
    mutants = [mutant for file in files for mutant in find_mutants(file)]
    print(f"{len(mutants)} mutants in {len(files)} files; the unchanged tests run first", flush=True)
    if 0 < options.sample < len(mutants):
        mutants = sorted(random.Random(options.seed).sample(mutants, options.sample))  # noqa: S311 - a sample, no secret
    baseline = measure_baseline(options.tests)
    for name in baseline.modules:
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    print(f"{len(baseline.seconds)} tests in {sum(baseline.seconds.values()):.0f} s", flush=True)
    survivors = try_all(mutants, baseline, options.processes)
    score = 1 - len(survivors) / len(mutants)
    print(f"{table(mutants, survivors)}\n\nmutation score {score:.1%} ({len(mutants)} mutants, seed {options.seed})")
    if tuple(options.paths) == TARGETS:
        record("mutation", [Figure("mutation score", round(score, 4), "", "higher", MUST)], time.monotonic() - started)
    return 0 if score >= MUST else 1


if __name__ == "__main__":
    sys.exit(main())

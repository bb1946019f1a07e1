import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.kubernetes.errors import ClusterError
from lab.kubernetes.processes import Component, Supervisor, parse_stat


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    supervisor = Supervisor(tmp_path / "processes", tmp_path / "logs", detached=False)
    yield supervisor
    for name in supervisor.names():
        supervisor.stop(name, seconds=0)


def _marking(marker: Path, argument: str = "60") -> Component:
    """A program that is healthy once it has made its mark."""
    return Component(
        name="sleeper",
        command=("sh", "-c", f"touch {marker}; exec sleep {argument}"),
        healthy=marker.exists,
        ready_within=10,
    )


def test_a_healthy_component_is_not_started_twice(supervisor: Supervisor, tmp_path: Path) -> None:
    component = _marking(tmp_path / "up")
    assert supervisor.start(component)
    supervisor.wait_until_healthy(component)
    first = supervisor.find("sleeper")

    assert not supervisor.start(component)
    assert first is not None
    assert supervisor.find("sleeper") == first


def test_a_later_command_finds_and_stops_what_an_earlier_one_started(supervisor: Supervisor, tmp_path: Path) -> None:
    component = _marking(tmp_path / "up")
    supervisor.start(component)
    supervisor.wait_until_healthy(component)

    later = Supervisor(supervisor.pid_directory, supervisor.log_directory, detached=False)
    process = later.find("sleeper")
    assert process is not None
    later.stop("sleeper")

    assert not process.alive()
    assert later.names() == []


def test_a_component_with_another_command_is_replaced(supervisor: Supervisor, tmp_path: Path) -> None:
    marker = tmp_path / "up"
    supervisor.start(_marking(marker))
    supervisor.wait_until_healthy(_marking(marker))
    first = supervisor.find("sleeper")
    changed = Component(name="sleeper", command=("sleep", "61"), healthy=lambda: supervisor.find("sleeper") is not None)

    assert first is not None
    supervisor.stop("sleeper")
    assert supervisor.start(changed)
    supervisor.wait_until_healthy(changed)
    assert supervisor.find("sleeper") != first


def test_the_pid_of_somebody_else_is_never_taken_for_ours(supervisor: Supervisor) -> None:
    supervisor.pid_directory.mkdir(parents=True)
    boot = Path("/proc/sys/kernel/random/boot_id").read_text()
    stat = Path(f"/proc/{os.getpid()}/stat").read_text().split()
    stat[21] = str(int(stat[21]) - 1)  # started at another time: the number was given to a new process
    (supervisor.pid_directory / "stranger.pid").write_text(" ".join(stat) + "\n" + boot + "fingerprint\n")

    assert supervisor.find("stranger") is None
    supervisor.stop("stranger")  # would end this very test if it trusted the number
    assert supervisor.names() == []


def test_a_component_that_exits_is_reported_with_its_log(supervisor: Supervisor) -> None:
    broken = Component(name="broken", command=("sh", "-c", "echo no such flag; exit 2"), healthy=lambda: False)
    supervisor.start(broken)

    with pytest.raises(ClusterError, match="no such flag"):
        supervisor.wait_until_healthy(broken)


def test_an_address_that_a_stranger_answers_at_is_not_taken_for_our_component(supervisor: Supervisor) -> None:
    with pytest.raises(ClusterError, match="not ours"):
        supervisor.start(Component(name="registry", command=("sleep", "60"), healthy=lambda: True))


def test_a_component_that_never_answers_is_given_up(supervisor: Supervisor) -> None:
    silent = Component(name="silent", command=("sleep", "60"), healthy=lambda: False, ready_within=0.2)
    supervisor.start(silent)
    started = time.monotonic()

    with pytest.raises(ClusterError, match="not healthy"):
        supervisor.wait_until_healthy(silent)
    assert time.monotonic() - started < 5


def test_a_program_name_with_brackets_does_not_confuse_the_start_time() -> None:
    line = "42 (a) b (c) S " + " ".join(str(number) for number in range(4, 30))
    assert parse_stat(line) == (42, "S", 22)

"""The process that a model is loaded into: CPUs and memory that its cgroup leaves it."""

from pathlib import Path

import psutil
import pytest

from finetune_model import process
from finetune_model.process import available_cpus, spare_memory


@pytest.mark.parametrize(
    ("quota", "cpus"), [("max 100000", 8), ("150000 100000", 2), ("50000 100000", 1), ("3200000 100000", 8), ("odd", 8)]
)
def test_threads_follow_the_quota_of_the_cgroup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, cpus: int
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    (tmp_path / "cpu.max").write_text(quota + "\n")
    monkeypatch.setattr(process, "CPU_QUOTA", tmp_path / "cpu.max")
    assert available_cpus() == cpus


@pytest.mark.parametrize(("quota", "cpus"), [("-1", 8), ("250000", 3), (None, 8)])
def test_the_older_cgroups_are_read_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str | None, cpus: int
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(process, "CPU_QUOTA", tmp_path / "none")
    monkeypatch.setattr(process, "CPU_QUOTA_V1", tmp_path / "quota")
    monkeypatch.setattr(process, "CPU_PERIOD_V1", tmp_path / "period")
    if quota:
        (tmp_path / "quota").write_text(quota + "\n")
        (tmp_path / "period").write_text("100000\n")
    assert available_cpus() == cpus


def test_spare_memory_is_what_others_and_the_cgroup_leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "MEMORY_LIMITS", (tmp_path / "memory.max", tmp_path / "none"))
    assert 0 < spare_memory() < psutil.virtual_memory().total - psutil.Process().memory_info().rss
    machine = 1 << 40
    monkeypatch.setattr(process, "available_memory", lambda: machine)
    for limit in ("max", str(1 << 62)):
        (tmp_path / "memory.max").write_text(limit)
        assert spare_memory() == pytest.approx(machine)
    (tmp_path / "memory.max").write_text(str(machine // 2))
    assert 0 < spare_memory() < machine // 2
    (tmp_path / "memory.max").write_text("1")
    assert spare_memory() == 0

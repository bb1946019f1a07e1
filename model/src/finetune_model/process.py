"""The process that a model is loaded into: OpenMP's threads, CPUs and memory of its cgroup, garbage collection.

Only the standard library, because most of it has to happen before torch is imported.
"""

import ctypes
import gc
import math
import os
from pathlib import Path
from typing import Final

OPENMP_DEFAULTS: Final = {
    # Pods share their nodes' cores: CPU is a request, not a limit. OpenMP's threads spin while they wait, and a spinning thread
    # keeps the very core that the awaited thread needs: with a second busy program per core, training a 135M model on two
    # cores went from 140 tokens/s to 9. Threads that sleep at once got 70, but only 90 on idle cores. GNU's OpenMP, which
    # torch brings, can spin for some microseconds and then sleep: 45 and 140. Where a cgroup has a CPU quota, spinning burns it.
    "GOMP_SPINCOUNT": "3000",
    # The same for other OpenMPs, which know only the extremes.
    "OMP_WAIT_POLICY": "PASSIVE",
}
"""Environment variables that OpenMP reads when torch is imported."""
CPU_QUOTA: Final = Path("/sys/fs/cgroup/cpu.max")
CPU_QUOTA_V1: Final = Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us")
CPU_PERIOD_V1: Final = Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us")
MEMORY_LIMITS: Final = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Files with a container's memory limit, in bytes or `max`: cgroup v2 and v1."""


def set_defaults(defaults: dict[str, str]) -> None:
    """Set environment variables that are unset; existing values win."""
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


def pause_garbage_collection() -> None:
    """Stop collecting garbage until `resume_garbage_collection`.

    Importing torch and transformers makes hundreds of thousands of objects, all of which stay: scanning them took a fifth of
    the time of a start.
    """
    gc.disable()


def resume_garbage_collection() -> None:
    """Collect garbage again, but never scan what exists by now; nothing happens if collection was not paused."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()


def available_cpus() -> int:
    """Return the CPUs of this process: the smaller of its affinity and its cgroup's quota, rounded up.

    torch counts the machine's cores. In a pod with `limits.cpu: 2` on a node of 64 cores it would start 64 threads, which the
    kernel then stops together for most of every scheduling period.
    """
    affinity = len(os.sched_getaffinity(0))
    quota = _cpu_quota()
    return max(1, min(affinity, math.ceil(quota))) if quota else affinity


def memory_limit() -> int | None:
    """Return the memory limit of this process's cgroup in bytes; None without one."""
    limits = [limit for path in MEMORY_LIMITS if (limit := _number_in(path))]
    return min(limits, default=None)


def memory_capacity() -> int:
    """Return the bytes that this process may use in all: the limit of its cgroup, or else the machine's memory."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(machine, memory_limit() or machine)


def spare_memory() -> int:
    """Return the bytes that this process may still allocate: the machine's available memory, or what its cgroup leaves."""
    limit = memory_limit()
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    available = available_memory()
    return max(0, available if limit is None else min(available, limit - resident))


def available_memory() -> int:
    """Return the bytes that the machine has free, or could free at once by dropping caches. Raises OSError before Linux 3.14."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/meminfo has no MemAvailable: this kernel is too old")


def release_free_memory() -> None:
    """Return freed heap to the system. glibc keeps the peak of loading: 260 MiB beside a model of 540."""
    libc = ctypes.CDLL(None)
    # Other C libraries have no such function, and keep less.
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def _number_in(path: Path) -> int | None:
    """Return the number in a file; None if the file does not exist or says `max`."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _cpu_quota() -> float | None:
    """Return the CPUs of the cgroup's quota; None without one."""
    try:
        if CPU_QUOTA.exists():
            quota, period = CPU_QUOTA.read_text().split()
        else:
            quota, period = CPU_QUOTA_V1.read_text().strip(), CPU_PERIOD_V1.read_text().strip()
        return None if quota in ("max", "-1") else int(quota) / int(period)
    except (OSError, ValueError):
        # No cgroup file system is mounted: the affinity alone counts.
        return None

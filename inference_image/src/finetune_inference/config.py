"""Settings of the server, all in one place: what an administrator may change, and where the served models come from.

What is served (base model, adapters, precision) is a `finetune_api.serving.ServingConfig`, which the operator mounts into
the pod. How this process serves it (queue, limits, threads, address) is `Settings`, read from the environment.
"""

import ctypes
import math
import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from finetune_api.contract import ADAPTER_LIST_FILE, ADAPTER_LIST_MOUNT, CONFIG_PATH, SERVER_PORT
from finetune_api.serving import ServedAdapter, ServedModel, ServingConfig

CGROUP_V2_QUOTA = Path("/sys/fs/cgroup/cpu.max")
CGROUP_V1_QUOTA = Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us")
CGROUP_V1_PERIOD = Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us")
CGROUP_V2_MEMORY = Path("/sys/fs/cgroup/memory.max")
CGROUP_V1_MEMORY = Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")


class Settings(BaseSettings):
    """How this process serves. Each field is an environment variable `FINETUNE_SERVER_<FIELD>`, but for the first."""

    model_config = SettingsConfigDict(
        env_prefix="FINETUNE_SERVER_", frozen=True, extra="ignore", populate_by_name=True, protected_namespaces=()
    )

    model_name_or_path: Annotated[
        str | None,
        Field(
            validation_alias="MODEL_NAME_OR_PATH",
            description="Base model to serve, a folder or ORG/NAME of a hub repository. For use without Kubernetes: it "
            "replaces the model's path of the configuration file, which need not exist then.",
        ),
    ] = None
    config_path: Annotated[Path, Field(description="File with the ServingConfig (JSON).")] = Path(CONFIG_PATH)
    engine: Annotated[
        Literal["transformers", "vllm"],
        Field(
            description="What computes: transformers, which every image has, or vllm, which needs the package vllm. The API and "
            "what is checked of adapters are the same."
        ),
    ] = "transformers"
    host: Annotated[str, Field(description="Address to listen on.")] = "0.0.0.0"  # noqa: S104 - a pod has one address
    port: Annotated[int, Field(description="TCP port to listen on; 0 picks a free one.", ge=0, le=65535)] = SERVER_PORT
    threads: Annotated[
        int | None, Field(description="Threads that compute; unset means as many as the CPU quota has.", ge=1)
    ] = None
    max_running: Annotated[
        int, Field(description="Sequences that are worked on at the same time, one token each per step.", ge=1)
    ] = 32
    max_cached_tokens: Annotated[
        int | None,
        Field(
            description="Tokens, of all sequences together, whose keys and values are kept; unset means as many as fit into "
            "a quarter of the memory that the model leaves. One sequence of the model's longest context always fits.",
            ge=1,
        ),
    ] = None
    adapters_path: Annotated[
        Path,
        Field(
            description="File with a list of adapters that may change at any time (JSON, see `adapter_list`); need not exist."
        ),
    ] = Path(ADAPTER_LIST_MOUNT, ADAPTER_LIST_FILE)
    adapters_poll_seconds: Annotated[float, Field(description="Seconds between two looks at that file.", gt=0)] = 0.1
    max_lora_rank: Annotated[int, Field(description="Highest rank of an adapter.", ge=1)] = 256
    max_batched_adapters: Annotated[
        int,
        Field(
            description="Adapters that vllm works with in one step, each with room for the highest rank; requests for others "
            "wait for their turn. transformers has no such limit.",
            ge=1,
        ),
    ] = 8
    adapter_memory_bytes: Annotated[
        int | None,
        Field(
            description="Memory for adapters; those that were not asked for the longest leave it, and are read again when "
            "somebody asks. Unset means an eighth of the memory that the model leaves, at least 64 MiB.",
            ge=1,
        ),
    ] = None
    max_waiting: Annotated[
        int, Field(description="Sequences that may wait for the engine; one more is answered with 429.", ge=1)
    ] = 64
    request_timeout_seconds: Annotated[
        float,
        Field(description="Seconds that an answer may take, waiting included; then it is given up with 504.", gt=0),
    ] = 600.0
    max_output_tokens: Annotated[
        int, Field(description="Largest max_tokens that a request may ask for, and the default for chats.", ge=1)
    ] = 4096
    max_sequences_per_request: Annotated[
        int, Field(description="Prompts times n that one request may ask for.", ge=1)
    ] = 32
    chat_page: Annotated[
        bool, Field(description="Serve a page to chat with two models side by side, at /chat (see `chat_page`).")
    ] = False
    max_body_bytes: Annotated[int, Field(description="Largest request body in bytes.", ge=1024)] = 4 << 20
    drain_delay_seconds: Annotated[
        float,
        Field(
            description="Seconds between SIGTERM and closing the port. Meanwhile /readyz fails and requests are still "
            "answered, each on a connection that then ends, because load balancers learn late that this process is "
            "going. The operator's pods have 10, since a busy node's service proxy takes several.",
            ge=0,
        ),
    ] = 3.0
    drain_seconds: Annotated[
        int,
        Field(
            description="Seconds that running requests get after the port is closed; with the delay and five seconds for "
            "the end it has to stay below what comes before SIGKILL. The operator's pods have 45, of 65 in all.",
            ge=0,
        ),
    ] = 25


def load_serving_config(settings: Settings) -> ServingConfig:
    """What to serve: the configuration file, with MODEL_NAME_OR_PATH in front of it.

    Raises OSError if there is no file and no override, ValueError if the file is no ServingConfig.
    """
    override = settings.model_name_or_path
    if override and not settings.config_path.exists():
        return standalone_config(override)
    config = ServingConfig.model_validate_json(settings.config_path.read_bytes())
    if override:
        return config.model_copy(update={"model": config.model.model_copy(update={"path": override, "revision": None})})
    return config


def standalone_config(
    model: str,
    adapters: dict[str, str] | None = None,
    *,
    name: str | None = None,
    max_model_length: int | None = None,
    merge: bool = False,
) -> ServingConfig:
    """What to serve without Kubernetes: a base model by path or hub name, and adapter folders by name.

    `merge` makes the one adapter a part of the weights. Raises ValueError if there is not exactly one then.
    """
    return ServingConfig(
        model=ServedModel(name=name or Path(model).name or model, path=model),
        adapters=[ServedAdapter(name=adapter, path=path) for adapter, path in (adapters or {}).items()],
        max_model_length=max_model_length,
        merge_adapter=merge or None,
    )


def available_cpus() -> int:
    """CPUs this process may use: the smaller of its affinity and its cgroup's quota, rounded up.

    torch counts the machine's cores. In a pod with `limits.cpu: 2` on a node of 64 it would start 64 threads, which the
    kernel then stops together for most of every scheduling period.
    """
    affinity = len(os.sched_getaffinity(0))
    quota = _cgroup_quota()
    return max(1, min(affinity, math.ceil(quota))) if quota else affinity


def spare_memory() -> int:
    """Bytes this process may use beside what it uses: what others leave of the machine, or its cgroup's limit if that is less."""
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    limits = [_number_in(path) for path in (CGROUP_V2_MEMORY, CGROUP_V1_MEMORY)]
    return max(0, min([_available_memory(), *(limit - resident for limit in limits if limit)]))


def give_back_memory() -> None:
    """Give the system back what was freed. glibc keeps what loading took at its peak: 260 MiB beside a model of 540."""
    libc = ctypes.CDLL(None)
    # Other C libraries have no such function, and keep less.
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def _available_memory() -> int:
    """Bytes that the machine has free, or would have at once without what it only keeps to be fast."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/meminfo has no MemAvailable: this kernel is too old")


def _number_in(path: Path) -> int | None:
    """The number in a file; None if there is no such file or it says `max`."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _cgroup_quota() -> float | None:
    """CPUs of the cgroup's quota; None if there is none."""
    try:
        if CGROUP_V2_QUOTA.exists():
            quota, period = CGROUP_V2_QUOTA.read_text().split()
        else:
            quota, period = CGROUP_V1_QUOTA.read_text().strip(), CGROUP_V1_PERIOD.read_text().strip()
        return None if quota in ("max", "-1") else int(quota) / int(period)
    except (OSError, ValueError):
        # No cgroup file system is mounted: the affinity alone counts.
        return None

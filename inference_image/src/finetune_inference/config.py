"""Settings of the server, all in one place: what an administrator may change, and where the served models come from.

What is served (base model, adapters, precision) is a `finetune_api.serving.ServingConfig`, which the operator mounts into
the pod. How this process serves it (queue, limits, threads, address) is `Settings`, read from the environment.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from finetune_api.contract import ADAPTER_LIST_FILE, ADAPTER_LIST_MOUNT, CONFIG_PATH, SERVER_PORT
from finetune_api.serving import ServedAdapter, ServedModel, ServingConfig


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

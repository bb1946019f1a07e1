"""`python -m finetune_inference`: serve the models of the mounted configuration, or of the command line.

    python -m finetune_inference
    python -m finetune_inference --model /models/smollm2 --adapter support-tone=/adapters/support-tone --port 8000

Without arguments it reads the configuration file and MODEL_NAME_OR_PATH (see `config.Settings`). The exit status is 0 after
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
    """Serve until a signal arrives; returns the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    try:
        settings, config = configuration(arguments)
    except (OSError, ValueError) as error:
        log.error("The configuration cannot be used: %s", error)  # noqa: TRY400 - a sentence, not a stack trace
        return 2
    set_defaults(OPENMP_DEFAULTS)
    pause_garbage_collection()
    service = InferenceService(config, settings)
    server = Server(service)
    server.run()
    return 1 if service.failure else 0


def configuration(arguments: list[str] | None = None) -> tuple[Settings, ServingConfig]:
    """Read settings and models from the command line, the environment and the configuration file, in this order.

    Raises OSError or ValueError.
    """
    options = _parser().parse_args(arguments)
    fields = ("host", "port", "config_path", "chat_page", "engine")
    given = {name: value for name in fields if (value := getattr(options, name)) is not None}
    settings = Settings(**given)
    if options.model is None:
        if options.adapter or options.merge:
            raise ValueError("--adapter and --merge need --model, the base model")
        return settings, load_serving_config(settings)
    adapters = dict(_name_and_path(text) for text in options.adapter)
    config = standalone_config(
        options.model, adapters, name=options.name, max_model_length=options.max_model_length, merge=options.merge
    )
    return settings, config


class Server(uvicorn.Server):
    """uvicorn with a graceful shutdown: unready at once, port closed a little later, exit when all answers are complete."""

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
        """Monotonic seconds at which the port closes."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain on the first signal, exit on the second.

        The delay is for load balancers, so there is none after SIGINT (a person at a keyboard) or before the server was ready.
        """
        if self._service.draining:
            super().handle_exit(sig, frame)
            return
        is_in_traffic = sig == signal.SIGTERM and self._service.ready
        delay = self._service.settings.drain_delay_seconds if is_in_traffic else 0
        log.info("Signal %d: not ready any more, closing the port in %.1f s", sig, delay)
        self._close_at = time.monotonic() + delay
        self._service.draining = True

    async def on_tick(self, counter: int) -> bool:
        """Return whether to close the port and exit; called ten times a second."""
        if self._service.ready:
            resume_garbage_collection()
        if self._service.failure:
            log.error("Exiting: %s", self._service.failure)
            return True
        return await super().on_tick(counter) or time.monotonic() >= self._close_at


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m finetune_inference", description="Serve a base model and its LoRA adapters with OpenAI's API."
    )
    parser.add_argument("--config", dest="config_path", help="file with the ServingConfig (JSON)")
    parser.add_argument("--model", help="base model: a folder, or ORG/NAME of a hub repository; replaces --config")
    parser.add_argument("--name", help="name of the base model for clients (default: the folder's name)")
    parser.add_argument(
        "--adapter", action="append", default=[], metavar="NAME=PATH", help="adapter folder; repeatable"
    )
    parser.add_argument(
        "--merge", action="store_true", help="merge the adapter into the weights; the base model is not served then"
    )
    parser.add_argument(
        "--chat", dest="chat_page", action="store_true", default=None, help="serve a chat page at /chat"
    )
    parser.add_argument(
        "--engine",
        choices=("transformers", "vllm"),
        help="engine: transformers (default; always installed, for CPUs and every kind of adapter) or vllm (faster with large "
        "models on GPUs; needs the package vllm)",
    )
    parser.add_argument("--max-model-length", type=int, help="longest prompt plus answer, in tokens")
    parser.add_argument("--host", help="address to listen on")
    parser.add_argument("--port", type=int, help="TCP port to listen on")
    return parser


def _name_and_path(text: str) -> tuple[str, str]:
    name, separator, path = text.partition("=")
    if not (name and separator and path):
        raise ValueError(f"--adapter {text!r} has no name or no path; use NAME=PATH")
    return name, path


if __name__ == "__main__":
    status = main()
    logging.shutdown()
    # Not sys.exit, because Python's cleanup aborts the process if the engine's thread is importing torch.
    os._exit(status)

"""The inference server in a thread of the test's process, on loopback."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import openai
import uvicorn
from fastapi import FastAPI

from finetune_api.fingerprint import Fingerprint, Observation, Verdict, judge
from finetune_api.serving import ServedAdapter, ServedModel, ServingConfig
from finetune_inference.api.app import app_around
from finetune_inference.config import Settings
from finetune_inference.inference import InferenceService


@dataclass
class Running:
    """A server on loopback."""

    url: str
    app: FastAPI
    service: InferenceService

    @property
    def openai(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)


@contextmanager
def running(service: InferenceService, *, wait: bool = True) -> Iterator[Running]:
    """Serve in a thread of this process until the block ends."""
    app = app_around(service)
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=5))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])))
    thread.start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    try:
        if wait:
            while not server.started:
                assert thread.is_alive()
            service.wait_loaded()
        yield Running(url, app, service)
    finally:
        server.should_exit = True
        thread.join()


def verdict_about(model: Path, adapter: Path, fingerprint: Fingerprint) -> Verdict:
    """Return the operator's verdict about this adapter on a server in this process."""
    config = ServingConfig(
        model=ServedModel(name="base", path=str(model)), adapters=[ServedAdapter(name="tuned", path=str(adapter))]
    )
    settings = Settings(threads=1, drain_delay_seconds=0)
    with running(InferenceService(config, settings)) as server, server.openai as client:

        def replayed(name: str, token_ids: list[int], prompt_tokens: int) -> list[float]:
            answer = client.completions.create(model=name, prompt=token_ids, max_tokens=0, echo=True, logprobs=0)
            logprobs = answer.choices[0].logprobs
            assert logprobs is not None
            return [float(value or 0) for value in (logprobs.token_logprobs or [])[prompt_tokens:]]

        observed = [
            Observation(*(replayed(name, probe.token_ids, probe.prompt_tokens) for name in ("tuned", "base")))
            for probe in fingerprint.probes
        ]
    return judge(fingerprint, observed)[0]

"""The inference server in a thread of the test's own process, on loopback."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import openai
import uvicorn
from fastapi import FastAPI

from finetune_inference.app import app_around
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

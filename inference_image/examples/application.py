"""Your own FastAPI application around `process_text`: it sorts support messages with a fine-tuned adapter.

    BASE=/models/smollm2 ADAPTER=/adapters/support-tickets python inference_image/examples/application.py
    curl localhost:8080/sort --json '"Our invoice lists a product that we did not buy."'

The model runs in this process: no second server, no HTTP in between.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

import uvicorn
from fastapi import Body, FastAPI, HTTPException
from pydantic import BaseModel

from finetune_inference.config import standalone_config
from finetune_inference.engine.scheduler import QueueFullError
from finetune_inference.inference import ContextLengthError, InferenceService, NotReadyError


class Sorted(BaseModel):
    """Answers to one message."""

    tuned: str
    """Answer with the adapter."""
    base: str
    """Answer of the base model, for comparison."""


def create_app(base: str, adapter: str) -> FastAPI:
    """Make the application for a base model and one adapter, both folders."""
    service = InferenceService(standalone_config(base, {"tuned": adapter}, name="base"))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()  # loads in a background thread, so that /healthz answers meanwhile
        yield
        service.close()

    app = FastAPI(lifespan=lifespan)

    @app.get("/healthz")
    def healthz() -> dict[str, bool]:
        return {"ready": service.ready}

    # A plain def, because FastAPI runs it in a thread, and any number of threads may call process_text at the same time.
    @app.post("/sort")
    def sort(message: Annotated[str, Body(max_length=2000)]) -> Sorted:
        try:
            tuned, base = (service.process_text(message, model=name, max_tokens=24).text for name in ("tuned", "base"))
        except ContextLengthError as error:
            raise HTTPException(413, str(error)) from None
        except (NotReadyError, QueueFullError) as error:
            raise HTTPException(503, str(error), {"Retry-After": "5"}) from None
        return Sorted(tuned=tuned, base=base)

    return app


if __name__ == "__main__":
    uvicorn.run(create_app(os.environ["BASE"], os.environ["ADAPTER"]), host="127.0.0.1", port=8080)

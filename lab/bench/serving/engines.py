"""The measured ways to answer the same requests: ours, and what transformers and peft offer. Each returns the answers' tokens."""

import asyncio
import queue
import socket
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Literal

import uvicorn
from fastapi import FastAPI

from finetune_api.serving import ServedAdapter, ServedModel, ServingConfig
from finetune_inference.api.app import app_around
from finetune_inference.config import Settings
from finetune_inference.engine.interface import Event, Failed, Finished, Generated, Sampling, TokenRequest
from finetune_inference.inference import InferenceService
from lab.bench.serving.workload import CONCURRENT, THREADS, Ask

Answers = list[list[int]]
Precision = Literal["float32", "bfloat16"]


class Ours:
    """Our service in this process, without HTTP."""

    def __init__(self, model: Path, adapters: dict[str, Path], precision: Precision = "float32") -> None:
        served = [ServedAdapter(name=name, path=str(path)) for name, path in adapters.items()]
        config = ServingConfig(model=ServedModel(name="base", path=str(model)), adapters=served, precision=precision)
        self.service = InferenceService(config, Settings(threads=THREADS, max_running=CONCURRENT, max_waiting=1024))
        self.service.load()

    def answer(self, requests: Sequence[Ask]) -> Answers:
        """All requests at once; the scheduler keeps as many in work as it may."""
        events: queue.SimpleQueue[tuple[int, Event]] = queue.SimpleQueue()
        self.service.submit([(self._request(ask), _into(events, i)) for i, ask in enumerate(requests)])
        answers: Answers = [[] for _ in requests]
        left = len(requests)
        while left:
            index, event = events.get()
            assert not isinstance(event, Failed)
            if isinstance(event, Generated):
                answers[index].append(event.token.token_id)
            left -= isinstance(event, Finished)
        return answers

    @contextmanager
    def over_http(self) -> Iterator[str]:
        """The address of the application around the same service, in a thread of this process, until the block ends."""
        listener = socket.create_server(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(_application(self.service), log_config=None, access_log=False))
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()

    def _request(self, ask: Ask) -> TokenRequest:
        served = self.service.model(ask.adapter)
        return TokenRequest(
            prompt=ask.prompt,
            adapter=served.adapter_name,
            max_tokens=ask.tokens,
            weights=served.weights,
            sampling=Sampling(temperature=0),
            stop_ids=served.vocabulary.stop_ids,
        )


def _application(service: InferenceService) -> FastAPI:
    """The routes of the server around a service that runs already, and goes on running."""
    app = app_around(service)
    app.router.lifespan_context = _no_lifespan
    return app


@asynccontextmanager
async def _no_lifespan(_: FastAPI) -> AsyncIterator[None]:
    yield


def _into(events: Any, index: int) -> Any:
    return lambda event: events.put((index, event))


class Peft:
    """The model with one adapter, unmerged, as peft makes it."""

    def __init__(self, model: Path, adapter: Path, precision: Precision = "float32") -> None:
        import torch
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(THREADS)
        self.torch = torch
        base = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, precision))
        self.model = PeftModel.from_pretrained(base, adapter).eval()
        self.ends = base.generation_config.eos_token_id
        self.pad = base.config.pad_token_id

    def one_by_one(self, requests: Sequence[Ask]) -> Answers:
        """`generate` for each request in turn."""
        return [self._generate([ask])[0] for ask in requests]

    def without_adapter(self, requests: Sequence[Ask]) -> Answers:
        """`generate` of the base model alone."""
        with self.model.disable_adapter():
            return self.one_by_one(requests)

    def static_batches(self, requests: Sequence[Ask]) -> Answers:
        """`generate` on padded batches; a batch ends with its longest answer."""
        batches = [requests[i : i + CONCURRENT] for i in range(0, len(requests), CONCURRENT)]
        return [answer for batch in batches for answer in self._generate(batch)]

    def continuous(self, requests: Sequence[Ask]) -> Answers:
        """transformers' own continuous batching."""
        from transformers import ContinuousBatchingConfig, GenerationConfig

        # Its interface takes one length for all; what is generated beyond a request's own length does not count.
        config = GenerationConfig(
            max_new_tokens=max(ask.tokens for ask in requests),
            do_sample=False,
            eos_token_id=self.ends,
            pad_token_id=self.pad,
        )
        # Enough for these requests; unset, it would take most of the machine's memory.
        memory = ContinuousBatchingConfig(num_blocks=2 * CONCURRENT)
        results = self.model.base_model.model.generate_batch(
            [ask.prompt for ask in requests], generation_config=config, continuous_batching_config=memory
        )
        ordered = sorted(results, key=lambda name: int(name.rpartition("_")[2]))
        answers = [list(results[name].generated_tokens) for name in ordered]
        return [self._useful(answer, ask) for answer, ask in zip(answers, requests, strict=True)]

    def _generate(self, batch: Sequence[Ask]) -> Answers:
        longest = max(len(ask.prompt) for ask in batch)
        ids = self.torch.tensor([[self.pad] * (longest - len(ask.prompt)) + ask.prompt for ask in batch])
        mask = self.torch.tensor([[0] * (longest - len(a.prompt)) + [1] * len(a.prompt) for a in batch])
        with self.torch.inference_mode():
            output = self.model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=max(ask.tokens for ask in batch),
                do_sample=False,
                pad_token_id=self.pad,
            )
        return [self._useful(row[longest:].tolist(), ask) for row, ask in zip(output, batch, strict=True)]

    def _useful(self, answer: list[int], ask: Ask) -> list[int]:
        """What was asked for, up to the end token."""
        answer = answer[: ask.tokens]
        ends = [self.ends] if isinstance(self.ends, int) else self.ends
        return next((answer[:i] for i, token in enumerate(answer) if token in ends), answer)

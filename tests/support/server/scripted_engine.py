"""An engine without torch that answers with given texts, token by token."""

import queue
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune_inference.engine.interface import (
    Event,
    Finished,
    Generated,
    ModelFacts,
    Refused,
    ScoredToken,
    TokenRequest,
    VerifiedAdapter,
)


@dataclass
class _Running:
    request: TokenRequest
    tokens: list[int]
    made: int = 0


@dataclass
class ScriptedEngine:
    """Answers each request with the next text of `texts`; a constraint has to allow it."""

    tokenizer: Any
    texts: "queue.SimpleQueue[str]" = field(default_factory=queue.SimpleQueue)
    prompts: list[list[int]] = field(default_factory=list)
    capacity: int = 8
    cached_tokens: int = 0
    spare_memory: int = 1 << 30
    _work: dict[int, _Running] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path) -> "ScriptedEngine":
        """Make the engine of a model's folder."""
        from transformers import AutoTokenizer

        return cls(AutoTokenizer.from_pretrained(folder))

    def load_model(self, merged: VerifiedAdapter | None = None) -> ModelFacts:
        return ModelFacts(4096, len(self.tokenizer), parameters=0, dtype="float32", device="cpu")

    def load_adapter(self, adapter: VerifiedAdapter) -> None:
        pass

    def answer(self, *texts: str) -> None:
        """Answer the next requests with these texts."""
        for text in texts:
            self.texts.put(text)

    def add(self, key: int, request: TokenRequest) -> None:
        text = "x" if self.texts.empty() else self.texts.get()
        self.prompts.append(request.prompt)
        self._work[key] = _Running(request, self.tokenizer(text, add_special_tokens=False).input_ids)

    def step(self) -> list[tuple[int, Event]]:
        events: list[tuple[int, Event]] = []
        for key, running in list(self._work.items()):
            event = self._next(running)
            events.append((key, event))
            if not isinstance(event, Generated):
                del self._work[key]
        return events

    def _next(self, running: _Running) -> Event:
        constraint = running.request.constraint
        if running.made == len(running.tokens) or (constraint and constraint.complete):
            return Finished("stop", running.made + 1)
        if running.made == running.request.max_tokens:
            return Finished("length", running.made)
        token = running.tokens[running.made]
        if constraint:
            if not constraint.allowed[token // 8] >> token % 8 & 1:
                return Refused(f"the constraint forbids the token at {running.made}")
            constraint.consume(token)
        running.made += 1
        return Generated(ScoredToken(token, -1.0))

    def remove(self, key: int) -> None:
        self._work.pop(key, None)

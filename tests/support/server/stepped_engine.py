"""An engine without torch that generates one token per step, when the test allows a step."""

import queue

from finetune_inference.engine.interface import (
    Event,
    Finished,
    Generated,
    ModelFacts,
    ScoredToken,
    TokenRequest,
    VerifiedAdapter,
)

SECONDS = 20
"""Time limit of a step; a test that waits as long has failed."""


class SteppedEngine:
    """Generates one token per step, when the test allows a step."""

    capacity = 1
    cached_tokens = 0
    spare_memory = 1 << 30

    def __init__(self) -> None:
        self.steps: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()
        self.added: list[str | None] = []
        self.removed: list[int] = []
        self._work: dict[int, tuple[TokenRequest, int]] = {}

    def load_model(self, merged: VerifiedAdapter | None = None) -> ModelFacts:
        return ModelFacts(context_length=512, vocabulary_size=400, parameters=0, dtype="float32", device="cpu")

    def load_adapter(self, adapter: VerifiedAdapter) -> None:
        pass

    def allow(self, steps: int) -> None:
        """Allow that many steps."""
        for _ in range(steps):
            self.steps.put(None)

    def add(self, key: int, request: TokenRequest) -> None:
        self.added.append(request.adapter)
        self._work[key] = (request, 0)

    def step(self) -> list[tuple[int, Event]]:
        failure = self.steps.get(timeout=SECONDS)
        if failure:
            self._work.clear()
            raise failure
        events: list[tuple[int, Event]] = []
        for key, (request, made) in list(self._work.items()):
            events.append((key, Generated(ScoredToken(made, -1.0))))
            self._work[key] = (request, made + 1)
            if made + 1 == request.max_tokens:
                del self._work[key]
                events.append((key, Finished("length", made + 1)))
        return events

    def remove(self, key: int) -> None:
        self.removed.append(key)
        self._work.pop(key, None)

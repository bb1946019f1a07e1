"""Generating answers: a request is fitted into the context length, queued, and its events become text."""

import queue
from collections.abc import Sequence
from dataclasses import dataclass

from finetune_inference.adapters.registry import LoadedModel
from finetune_inference.config import Settings
from finetune_inference.engine.interface import Event, FinishReason, Sampling, TokenRequest
from finetune_inference.engine.scheduler import Listener, SchedulerStoppedError, Ticket
from finetune_inference.service.lifecycle import NotReadyError, ServerLifecycle
from finetune_inference.text.answer_decoder import AnswerDecoder, TextRules
from finetune_inference.text.vocabulary import PromptError


class ContextLengthError(ValueError):
    """Prompt and answer together exceed the model's context length."""

    def __init__(self, limit: int, prompt_tokens: int, max_tokens: int) -> None:
        super().__init__(
            f"{prompt_tokens} prompt tokens and {max_tokens} for the answer exceed the context length of {limit} tokens"
        )
        self.limit = limit
        self.prompt_tokens = prompt_tokens
        self.max_tokens = max_tokens


@dataclass(frozen=True)
class TextResult:
    """Answer to a text."""

    text: str
    finish_reason: FinishReason
    model: str
    prompt_tokens: int
    completion_tokens: int


class Generator:
    """Submits requests to the scheduler, and collects whole answers."""

    def __init__(self, settings: Settings, server: ServerLifecycle) -> None:
        self._settings = settings
        self._server = server
        self._scheduler = server.scheduler

    def fit(self, prompt: Sequence[int], max_tokens: int | None) -> int:
        """Return the most tokens of the answer: `max_tokens` or, for None, the free context. Raises ContextLengthError."""
        limit = self._server.facts.context_length
        if max_tokens is None:
            max_tokens = max(1, min(self._settings.max_output_tokens, limit - len(prompt)))
        if len(prompt) + max_tokens > limit:
            raise ContextLengthError(limit, len(prompt), max_tokens)
        return max_tokens

    def require_room(self) -> None:
        """Raise QueueFullError if the waiting queue is full, before work is spent on a request."""
        self._scheduler.require_room()

    def submit(self, sequences: Sequence[tuple[TokenRequest, Listener]]) -> list[Ticket]:
        """Queue all sequences or none. Raises NotReadyError or QueueFullError."""
        self._server.require_loaded()
        try:
            return self._scheduler.submit(sequences)
        except SchedulerStoppedError as error:
            raise NotReadyError(str(error)) from None

    def cancel(self, tickets: Sequence[Ticket]) -> None:
        """Cancel sequences; completed ones are ignored."""
        self._scheduler.cancel(tickets)

    def process_text(
        self,
        text: str,
        served: LoadedModel,
        *,
        max_tokens: int | None,
        sampling: Sampling,
        stop: Sequence[str],
    ) -> TextResult:
        """Answer `text` with a model in memory and wait for the answer."""
        vocabulary, limit = served.vocabulary, self._server.facts.context_length
        prompt = (
            vocabulary.encode_chat([{"role": "user", "content": text}], limit)
            if vocabulary.has_chat_template
            else vocabulary.encode(text, limit)
        )
        if unknown := vocabulary.without_embedding(prompt, self._server.facts.vocabulary_size):
            raise PromptError(f"the model has no embedding for the token {unknown}")
        request = TokenRequest(
            prompt=prompt,
            adapter=served.adapter_name,
            weights=served.weights,
            max_tokens=self.fit(prompt, max_tokens),
            sampling=sampling,
            stop_ids=vocabulary.stop_ids,
        )
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        tickets = self.submit([(request, events.put)])
        try:
            return _collect(events, AnswerDecoder(vocabulary, TextRules(tuple(stop)), prompt), served.name, len(prompt))
        finally:
            self.cancel(tickets)


def _collect(events: "queue.SimpleQueue[Event]", answer: AnswerDecoder, model: str, prompt_tokens: int) -> TextResult:
    """Wait for all events of an answer."""
    texts = []
    while True:
        delta = answer.feed(events.get())
        texts.append(delta.text)
        if delta.finish_reason:
            return TextResult("".join(texts), delta.finish_reason, model, prompt_tokens, delta.completion_tokens)

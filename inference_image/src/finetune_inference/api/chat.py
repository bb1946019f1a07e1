"""POST /v1/chat/completions."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastapi import APIRouter, Request, Response

from finetune_inference.api.generation import (
    UsageCounter,
    answer_constraint,
    encoding_limit,
    served_model,
    server_state,
    token_requests,
    truncated,
)
from finetune_inference.api.logprobs import chat_logprobs
from finetune_inference.api.reply import Reply, respond
from finetune_inference.api.requests import ChatCompletionRequest
from finetune_inference.api.responses import (
    AssistantMessage,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatDelta,
    ChatLogprobs,
)
from finetune_inference.api.streaming import sse
from finetune_inference.text.answer_decoder import TextDelta

router = APIRouter()


@router.post("/v1/chat/completions", response_model=ChatCompletion)
async def create_chat_completion(body: ChatCompletionRequest, request: Request) -> Response:
    """Answer a conversation, at once or as a stream."""
    server = server_state(request)
    server.service.require_room()
    served = await served_model(server, body.model)
    messages = [message.to_template() for message in body.messages]
    limit = encoding_limit(server.service, body)
    encode = partial(
        served.vocabulary.encode_chat,
        template_kwargs=body.template_kwargs,
        continue_final_message=bool(body.continue_final_message),
        add_generation_prompt=body.add_generation_prompt is not False,
    )
    prompt = await asyncio.to_thread(encode, messages, limit)
    prompt = truncated(server.service, body, prompt, body.answer_limit)
    constraint = await answer_constraint(server, served.vocabulary, body)
    if body.logprobs:
        # Prepared here and not for the first token, because all other answers would wait for it.
        await asyncio.get_running_loop().run_in_executor(server.compiling, served.vocabulary.prepare_token_bytes)
    requests = token_requests(
        server.service,
        served,
        body,
        [prompt],
        max_tokens=body.answer_limit,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        constraint=constraint,
    )
    counter = UsageCounter(server.metrics, served.name, len(prompt))
    return await respond(request, _Chat(server, served, body, requests, counter))


@dataclass
class _Chat(Reply[ChatCompletionRequest]):
    id_prefix = "chatcmpl"

    def _document(self, collected: list[list[TextDelta]]) -> ChatCompletion:
        choices = [self._choice(index, parts) for index, parts in enumerate(collected)]
        return ChatCompletion(**self.head, choices=choices, usage=self.counter.usage)

    def _opening(self) -> bytes:
        role = ChatDelta(role="assistant", content="")
        return b"".join(self._chunk(ChatChunkChoice(index=i, delta=role)) for i in range(len(self.requests)))

    def _chunks(self, index: int, delta: TextDelta) -> list[bytes]:
        return [self._chunk(choice) for choice in self._chunk_choices(index, delta)]

    def _usage_chunk(self) -> bytes:
        return sse(ChatChunk(**self.head, choices=[], usage=self.counter.usage).model_dump_json())

    def _choice(self, index: int, parts: Sequence[TextDelta]) -> ChatChoice:
        reason = parts[-1].finish_reason
        assert reason is not None  # noqa: S101 - the last delta of an answer has a finish reason
        return ChatChoice(
            index=index,
            message=AssistantMessage(content="".join(delta.text for delta in parts)),
            logprobs=self._logprobs(parts),
            finish_reason=reason,
        )

    def _chunk_choices(self, index: int, delta: TextDelta) -> list[ChatChunkChoice]:
        """Return the text and then an empty delta with the finish reason, as OpenAI does."""
        choices = []
        if delta.text or (delta.token and self.body.logprobs):
            logprobs = self._logprobs([delta])
            choices.append(ChatChunkChoice(index=index, delta=ChatDelta(content=delta.text), logprobs=logprobs))
        if delta.finish_reason:
            choices.append(ChatChunkChoice(index=index, delta=ChatDelta(), finish_reason=delta.finish_reason))
        return choices

    def _chunk(self, choice: ChatChunkChoice) -> bytes:
        chunk = ChatChunk(**self.head, choices=[choice], usage=None)
        # A role or text that is unset is left out. `usage` is null until the last chunk, and absent unless requested.
        absent = {name for name in ("role", "content") if getattr(choice.delta, name) is None}
        hidden: dict[str, Any] = {"choices": {0: {"delta": absent}}}
        if not self.body.include_usage:
            hidden["usage"] = True
        return sse(chunk.model_dump_json(exclude=hidden))

    def _logprobs(self, deltas: Sequence[TextDelta]) -> ChatLogprobs | None:
        if not self.body.logprobs:
            return None
        skipped = self.body.skip_special_tokens is not False
        return chat_logprobs(self.served.vocabulary, deltas, skip_special_tokens=skipped)

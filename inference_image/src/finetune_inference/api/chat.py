"""POST /v1/chat/completions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request, Response

from finetune_inference.api.chat_generation import ChatReply, prepare_chat
from finetune_inference.api.generation import server_state
from finetune_inference.api.json_body import JsonRoute
from finetune_inference.api.logprobs import chat_logprobs
from finetune_inference.api.reply import respond
from finetune_inference.api.requests import ChatCompletionRequest
from finetune_inference.api.responses import (
    AssistantMessage,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatDelta,
    ChatLogprobs,
    FunctionCall,
    FunctionCallDelta,
    ToolCallDelta,
    ToolCallItem,
)
from finetune_inference.api.streaming import sse
from finetune_inference.text.answer_parser import Content, Reasoning, ToolCall
from finetune_inference.text.chat_answer import AnswerDelta

router = APIRouter(route_class=JsonRoute)


@router.post("/v1/chat/completions", response_model=ChatCompletion)
async def create_chat_completion(body: ChatCompletionRequest, request: Request) -> Response:
    """Answer a conversation, at once or as a stream."""
    server = server_state(request)
    chat = await prepare_chat(server, body)
    return await respond(request, _Chat(server, chat.served, body, chat.requests, chat.counter, chat))


@dataclass
class _Chat(ChatReply):
    id_prefix = "chatcmpl"

    def _document(self, collected: list[list[AnswerDelta]]) -> ChatCompletion:
        choices = [self._choice(index, deltas) for index, deltas in enumerate(collected)]
        return ChatCompletion(**self.head, choices=choices, usage=self.counter.usage)

    def _opening(self) -> bytes:
        role = ChatDelta(role="assistant", content="")
        return b"".join(self._chunk(ChatChunkChoice(index=i, delta=role)) for i in range(len(self.requests)))

    def _chunks(self, index: int, delta: AnswerDelta) -> list[bytes]:
        return [self._chunk(choice) for choice in self._chunk_choices(index, delta)]

    def _usage_chunk(self) -> bytes:
        return sse(ChatChunk(**self.head, choices=[], usage=self.counter.usage).model_dump_json())

    def _choice(self, index: int, deltas: Sequence[AnswerDelta]) -> ChatChoice:
        parts = [part for delta in deltas for part in delta.parts]
        reason = deltas[-1].ended
        assert reason is not None  # noqa: S101 - the last delta of an answer has a finish reason
        calls = [
            ToolCallItem(id=part.id, function=FunctionCall(name=part.name, arguments=part.arguments))
            for part in parts
            if isinstance(part, ToolCall)
        ]
        content = "".join(part.text for part in parts if isinstance(part, Content))
        reasoning = "".join(part.text for part in parts if isinstance(part, Reasoning))
        return ChatChoice(
            index=index,
            message=AssistantMessage(
                content=None if calls and not content else content,
                reasoning_content=reasoning or None,
                tool_calls=calls or None,
            ),
            logprobs=self._logprobs(deltas),
            finish_reason=reason,
        )

    def _chunk_choices(self, index: int, delta: AnswerDelta) -> list[ChatChunkChoice]:
        """Return the parts and then an empty delta with the finish reason, as OpenAI does."""
        deltas = [change for part in delta.parts for change in _changes(part)]
        if delta.token and self.body.logprobs and not deltas:
            deltas = [ChatDelta(content="")]
        choices = [ChatChunkChoice(index=index, delta=change) for change in deltas]
        if choices:
            choices[0].logprobs = self._logprobs([delta])
        if delta.ended:
            choices.append(ChatChunkChoice(index=index, delta=ChatDelta(), finish_reason=delta.ended))
        return choices

    def _chunk(self, choice: ChatChunkChoice) -> bytes:
        chunk = ChatChunk(**self.head, choices=[choice], usage=None)
        # What a delta does not set is left out. `usage` is null until the last chunk, and absent unless requested.
        absent = {name for name in ChatDelta.model_fields if getattr(choice.delta, name) is None}
        hidden: dict[str, Any] = {"choices": {0: {"delta": absent}}}
        if not self.body.include_usage:
            hidden["usage"] = True
        return sse(chunk.model_dump_json(exclude=hidden))

    def _logprobs(self, deltas: Sequence[AnswerDelta]) -> ChatLogprobs | None:
        if not self.body.logprobs:
            return None
        skipped = self.body.skip_special_tokens is not False
        return chat_logprobs(self.served.vocabulary, deltas, skip_special_tokens=skipped)


def _changes(part: Content | Reasoning | ToolCall) -> list[ChatDelta]:
    """Return the deltas of one part: a call is its name, and then its arguments."""
    match part:
        case Content(text):
            return [ChatDelta(content=text)]
        case Reasoning(text):
            return [ChatDelta(reasoning_content=text)]
        case ToolCall(index, call_id, name, arguments):
            begin = ToolCallDelta(
                index=index, id=call_id, type="function", function=FunctionCallDelta(name=name, arguments="")
            )
            rest = ToolCallDelta(index=index, function=FunctionCallDelta(arguments=arguments))
            return [ChatDelta(tool_calls=[begin]), ChatDelta(tool_calls=[rest])]

"""Answers of Anthropic's Messages API: one document, or its stream of events in Anthropic's order."""

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import RootModel

from finetune_inference.api.answer_items import Add, Begin, End, Item, ItemList
from finetune_inference.api.anthropic_messages.errors import anthropic_error
from finetune_inference.api.anthropic_messages.request import NAMES, CountTokensRequest, MessagesRequest, arguments_of
from finetune_inference.api.chat_generation import ChatReply, encode_prompt, prepare_chat
from finetune_inference.api.errors import ApiError
from finetune_inference.api.generation import server_state
from finetune_inference.api.json_body import JsonRoute
from finetune_inference.api.reply import respond
from finetune_inference.api.translation import client_names, translate
from finetune_inference.text.chat_answer import AnswerDelta

router = APIRouter(route_class=JsonRoute)

STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
DELTAS = {
    "reasoning": ("thinking_delta", "thinking"),
    "text": ("text_delta", "text"),
    "call": ("input_json_delta", "partial_json"),
}
"""Type of an item's deltas, and the field of their text."""
Document = RootModel[dict[str, Any]]


@router.post("/v1/messages")
async def create_message(body: MessagesRequest, request: Request) -> Response:
    """Answer a conversation, at once or as a stream of events."""
    server = server_state(request)
    with client_names(NAMES):
        chat = await prepare_chat(server, translate(body.chat))
    return await respond(request, _Reply(server, chat.served, chat.body, chat.requests, chat.counter, chat))


@router.post("/v1/messages/count_tokens")
async def count_tokens(body: CountTokensRequest, request: Request) -> dict[str, int]:
    """Count the tokens of a conversation's prompt. Needs no weights, so that an evicted adapter is not loaded."""
    service = server_state(request).service
    served, chat = service.model(body.model), translate(body.chat)
    with client_names(NAMES):
        prompt = await asyncio.to_thread(encode_prompt, served, chat, service.facts.context_length)
    return {"input_tokens": len(prompt)}


@dataclass
class _Reply(ChatReply):
    id_prefix = "msg"

    _list: ItemList = field(default_factory=ItemList, init=False)
    _last: AnswerDelta | None = field(default=None, init=False)

    def _document(self, collected: list[list[AnswerDelta]]) -> Document:
        for delta in collected[0]:
            for _ in self._changes(delta):
                pass
        content = [_block(item) for item in self._list.items]
        return Document(self._message(content) | self._stop() | {"usage": self._usage()})

    def _opening(self) -> bytes:
        usage = self._usage() | {"output_tokens": 0}
        stop = {"stop_reason": None, "stop_sequence": None}
        return _event("message_start", message=self._message([]) | stop | {"usage": usage})

    def _chunks(self, index: int, delta: AnswerDelta) -> Iterator[bytes]:
        for change in self._changes(delta):
            position = change.item.index
            match change:
                case Begin(item):
                    yield _event("content_block_start", index=position, content_block=_block(item, begun=True))
                case Add(item, text):
                    kind, key = DELTAS[item.kind]
                    yield _event("content_block_delta", index=position, delta={"type": kind, key: text})
                case End():
                    yield _event("content_block_stop", index=position)

    def _closing(self) -> list[bytes]:
        usage = {"output_tokens": self.counter.completion_tokens}
        return [_event("message_delta", delta=self._stop(), usage=usage), _event("message_stop")]

    def _failure(self, error: ApiError) -> bytes:
        return _event("error", **{key: value for key, value in anthropic_error(error).items() if key != "type"})

    def _changes(self, delta: AnswerDelta) -> Iterator[Begin | Add | End]:
        """Add a delta to the items, and yield what happens to them."""
        yield from self._list.add(delta.parts)
        if delta.ended:
            self._last = delta
            yield from self._list.close()

    def _message(self, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.head["id"].replace("-", "_"),
            "type": "message",
            "role": "assistant",
            "model": self.body.model,
            "content": content,
        }

    def _stop(self) -> dict[str, Any]:
        assert self._last is not None and self._last.ended is not None  # noqa: S101 - called after the last delta
        text = self._last.stop_text if self._last.ended == "stop" else None
        return {"stop_reason": "stop_sequence" if text else STOP_REASONS[self._last.ended], "stop_sequence": text}

    def _usage(self) -> dict[str, Any]:
        usage = self.counter.usage
        return {
            "input_tokens": usage.prompt_tokens,
            "output_tokens": usage.completion_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
        }


def _block(item: Item, *, begun: bool = False) -> dict[str, Any]:
    """Return an item as a content block; one that has `begun` is empty, because its text follows in deltas."""
    text = "" if begun else item.text
    if item.call is not None:
        arguments = {} if begun else arguments_of(item.text)
        return {"type": "tool_use", "id": item.call.id, "name": item.call.name, "input": arguments}
    if item.kind == "reasoning":
        # The signature would prove to Anthropic who wrote the text; here nobody asks for it.
        return {"type": "thinking", "thinking": text, "signature": ""}
    return {"type": "text", "text": text, "citations": None}


def _event(name: str, **fields: Any) -> bytes:
    return f"event: {name}\ndata: {json.dumps({'type': name} | fields)}\n\n".encode()

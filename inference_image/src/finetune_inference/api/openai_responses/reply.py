"""Answers of OpenAI's Responses API: one document, or its stream of events in OpenAI's order."""

import json
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import RootModel

from finetune_inference.api.answer_items import Add, Begin, End, Item, ItemList
from finetune_inference.api.chat_generation import ChatReply, prepare_chat
from finetune_inference.api.errors import ApiError
from finetune_inference.api.generation import server_state
from finetune_inference.api.json_body import JsonRoute
from finetune_inference.api.logprobs import chat_logprobs
from finetune_inference.api.openai_responses.request import NAMES, ResponsesRequest
from finetune_inference.api.reply import respond
from finetune_inference.api.translation import client_names, translate
from finetune_inference.text.chat_answer import AnswerDelta, ChatFinishReason

router = APIRouter(route_class=JsonRoute)

ID_PREFIXES = {"reasoning": "rs", "text": "msg", "call": "fc"}
PARTS = {"reasoning": "reasoning_text", "text": "output_text"}
Document = RootModel[dict[str, Any]]


@router.post("/v1/responses")
async def create_response(body: ResponsesRequest, request: Request) -> Response:
    """Answer a conversation, at once or as a stream of events."""
    server = server_state(request)
    with client_names(NAMES):
        chat = await prepare_chat(server, translate(body.chat))
    return await respond(request, _Reply(server, chat.served, chat.body, chat.requests, chat.counter, chat, body))


@dataclass
class _Reply(ChatReply):
    id_prefix = "resp"

    asked: ResponsesRequest
    _list: ItemList = field(default_factory=ItemList, init=False)
    _ids: dict[int, str] = field(default_factory=dict, init=False)
    _logprobs: dict[int, list[dict[str, Any]]] = field(default_factory=dict, init=False)
    """Log-probabilities of the text items."""
    _ended: ChatFinishReason | None = field(default=None, init=False)
    _reasoning_tokens: int = field(default=0, init=False)
    _sequence: int = field(default=0, init=False)

    def _document(self, collected: list[list[AnswerDelta]]) -> Document:
        for delta in collected[0]:
            for _ in self._changes(delta):
                pass
        return Document(self._response(self._status))

    def _opening(self) -> bytes:
        response = self._response("in_progress")
        return self._event("response.created", response=response) + self._event(
            "response.in_progress", response=response
        )

    def _chunks(self, index: int, delta: AnswerDelta) -> Iterator[bytes]:
        for change in self._changes(delta):
            match change:
                case Begin(item):
                    yield from self._begin(item)
                case Add(item, text):
                    yield self._add(item, text, delta)
                case End(item):
                    yield from self._end(item)

    def _closing(self) -> list[bytes]:
        return [self._event(f"response.{self._status}", response=self._response(self._status))]

    def _failure(self, error: ApiError) -> bytes:
        failure = {"code": error.code or error.error_type, "message": error.message}
        return self._event("response.failed", response=self._response("failed") | {"error": failure})

    @property
    def _status(self) -> str:
        return "incomplete" if self._ended == "length" else "completed"

    def _changes(self, delta: AnswerDelta) -> Iterator[Begin | Add | End]:
        """Add a delta to the items, and yield what happens to them."""
        self._reasoning_tokens += delta.in_reasoning
        for change in self._list.add(delta.parts):
            if isinstance(change, Begin):
                self._ids[change.item.index] = f"{ID_PREFIXES[change.item.kind]}_{uuid.uuid4().hex}"
            if isinstance(change, Add) and change.item.kind == "text":
                self._logprobs.setdefault(change.item.index, []).extend(self._delta_logprobs(delta))
            yield change
        if delta.ended:
            self._ended = delta.ended
            yield from self._list.close()

    def _begin(self, item: Item) -> Iterator[bytes]:
        empty = self._item(Item(item.index, item.kind, call=item.call), "in_progress")
        if item.kind != "call":
            empty["content"] = []
        yield self._event("response.output_item.added", output_index=item.index, item=empty)
        if item.kind != "call":
            part = self._part(Item(item.index, item.kind))
            yield self._event("response.content_part.added", **self._place(item), part=part)

    def _add(self, item: Item, text: str, delta: AnswerDelta) -> bytes:
        if item.kind == "call":
            place = {"item_id": self._ids[item.index], "output_index": item.index}
            return self._event("response.function_call_arguments.delta", **place, delta=text)
        logprobs = {"logprobs": self._delta_logprobs(delta)} if item.kind == "text" else {}
        return self._event(f"response.{PARTS[item.kind]}.delta", **self._place(item), delta=text, **logprobs)

    def _end(self, item: Item) -> Iterator[bytes]:
        if item.kind == "call":
            assert item.call is not None  # noqa: S101 - each call's item has it
            place = {"item_id": self._ids[item.index], "output_index": item.index, "name": item.call.name}
            yield self._event("response.function_call_arguments.done", **place, arguments=item.text)
        else:
            logprobs = {"logprobs": self._logprobs.get(item.index, [])} if item.kind == "text" else {}
            yield self._event(f"response.{PARTS[item.kind]}.done", **self._place(item), text=item.text, **logprobs)
            yield self._event("response.content_part.done", **self._place(item), part=self._part(item))
        whole = self._item(item, self._item_status(item))
        yield self._event("response.output_item.done", output_index=item.index, item=whole)

    def _place(self, item: Item) -> dict[str, Any]:
        return {"item_id": self._ids[item.index], "output_index": item.index, "content_index": 0}

    def _part(self, item: Item) -> dict[str, Any]:
        part: dict[str, Any] = {"type": PARTS[item.kind], "text": item.text}
        if item.kind == "text":
            part |= {"annotations": [], "logprobs": self._logprobs.get(item.index, []) if item.text else []}
        return part

    def _item(self, item: Item, status: str) -> dict[str, Any]:
        base: dict[str, Any] = {"id": self._ids[item.index], "status": status}
        if item.call is not None:
            call = {"call_id": item.call.id, "name": item.call.name, "arguments": item.text}
            return base | {"type": "function_call"} | call
        content = {"content": [self._part(item)]}
        if item.kind == "reasoning":
            return base | {"type": "reasoning", "summary": [], "encrypted_content": None} | content
        return base | {"type": "message", "role": "assistant"} | content

    def _item_status(self, item: Item) -> str:
        last = item.index == len(self._list.items) - 1
        return "incomplete" if last and self._ended == "length" and item.call is None else "completed"

    def _delta_logprobs(self, delta: AnswerDelta) -> list[dict[str, Any]]:
        if not self.body.logprobs or delta.token is None:
            return []
        return [token.model_dump() for token in chat_logprobs(self.served.vocabulary, [delta]).content]

    def _response(self, status: str) -> dict[str, Any]:
        """Return the response with all fields of OpenAI's, which repeat the request's."""
        asked, text = self.asked, self.asked.text
        done = status in ("completed", "incomplete")
        return {
            "id": self.head["id"],
            "object": "response",
            "created_at": self.head["created"],
            "completed_at": int(time.time()) if status == "completed" else None,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": asked.instructions,
            "max_output_tokens": asked.max_output_tokens,
            "metadata": asked.metadata or {},
            "model": self.body.model,
            "output": [self._item(item, self._item_status(item)) for item in self._list.items] if done else [],
            "parallel_tool_calls": asked.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {"effort": asked.reasoning.effort if asked.reasoning else None, "summary": None},
            "store": False,
            "system_fingerprint": self.head["system_fingerprint"],
            "temperature": 1.0 if asked.temperature is None else asked.temperature,
            "text": {"format": (text.format if text else None) or {"type": "text"}, "verbosity": "medium"},
            "tool_choice": asked.tool_choice or "auto",
            "tools": asked.tools or [],
            "top_logprobs": asked.top_logprobs or 0,
            "top_p": 1.0 if asked.top_p is None else asked.top_p,
            "truncation": "disabled",
            "usage": self._usage() if done else None,
        }

    def _usage(self) -> dict[str, Any]:
        usage = self.counter.usage
        return {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": self._reasoning_tokens},
            "total_tokens": usage.total_tokens,
        }

    def _event(self, event: str, **fields: Any) -> bytes:
        document = {"type": event, "sequence_number": self._sequence} | fields
        self._sequence += 1
        return f"event: {event}\ndata: {json.dumps(document)}\n\n".encode()

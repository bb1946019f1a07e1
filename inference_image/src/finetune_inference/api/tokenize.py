"""POST /tokenize: the token ids of a text or a conversation, in vLLM's format.

The operator compares them with those of the training run, so that it notices an adapter that is served with another chat
template.
"""

import asyncio
from functools import partial

from fastapi import APIRouter, Request

from finetune_inference.api.generation import server_state
from finetune_inference.api.json_body import JsonRoute
from finetune_inference.api.requests import TokenizeRequest
from finetune_inference.api.responses import TokenizeResponse

router = APIRouter(route_class=JsonRoute)


@router.post("/tokenize")
async def tokenize(body: TokenizeRequest, request: Request) -> TokenizeResponse:
    """Encode a text or a conversation. Needs no weights, so that an evicted adapter is not loaded."""
    service = server_state(request).service
    vocabulary, limit = service.model(body.model).vocabulary, service.facts.context_length
    if body.messages is not None:
        encode_chat = partial(
            vocabulary.encode_chat,
            tools=body.tools,
            template_kwargs=body.chat_template_kwargs,
            continue_final_message=bool(body.continue_final_message),
            add_generation_prompt=body.add_generation_prompt is not False,
        )
        tokens = await asyncio.to_thread(encode_chat, body.messages, limit)
    else:
        encode = partial(vocabulary.encode, add_special_tokens=body.add_special_tokens is not False)
        tokens = await asyncio.to_thread(encode, body.prompt or "", limit)
    return TokenizeResponse(count=len(tokens), max_model_len=limit, tokens=tokens)

"""POST /tokenize: the token ids that a text or a conversation becomes, in vLLM's shape.

The operator compares them with those of the training run: so it sees when an adapter is served with another chat template.
"""

import asyncio

from fastapi import APIRouter, Request

from finetune_inference.api.generation import ServerState
from finetune_inference.api.schemas import TokenizeRequest, TokenizeResponse

router = APIRouter()


@router.post("/tokenize")
async def tokenize(body: TokenizeRequest, request: Request) -> TokenizeResponse:
    """Nothing is computed and no weights are needed, so an adapter that is not in memory stays where it is."""
    serving: ServerState = request.app.state.serving
    vocabulary, limit = serving.service.model(body.model).vocabulary, serving.service.facts.context_length
    if body.messages is not None:
        messages = [message.to_template() for message in body.messages]
        tokens = await asyncio.to_thread(vocabulary.encode_chat, messages, limit)
    else:
        tokens = await asyncio.to_thread(vocabulary.encode, body.prompt or "", limit)
    return TokenizeResponse(count=len(tokens), max_model_len=limit, tokens=tokens)

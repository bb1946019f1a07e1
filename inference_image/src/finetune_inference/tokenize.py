"""POST /tokenize: the token ids that a text or a conversation becomes, in vLLM's shape.

The operator compares them with those of the training run: so it sees when an adapter is served with another chat template.
"""

import asyncio

from fastapi import APIRouter, Request

from finetune_inference.generation import Serving
from finetune_inference.schemas import TokenizeRequest, TokenizeResponse

router = APIRouter()


@router.post("/tokenize")
async def tokenize(body: TokenizeRequest, request: Request) -> TokenizeResponse:
    """Nothing is computed and no weights are needed, so an adapter that is not in memory stays where it is."""
    serving: Serving = request.app.state.serving
    vocabulary = serving.service.model(body.model).vocabulary
    if body.messages is not None:
        tokens = await asyncio.to_thread(vocabulary.encode_chat, [message.to_template() for message in body.messages])
    else:
        tokens = await asyncio.to_thread(vocabulary.encode, body.prompt or "")
    return TokenizeResponse(count=len(tokens), max_model_len=serving.service.facts.context_length, tokens=tokens)

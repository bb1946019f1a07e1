"""POST /promote: whoever wrote the list of adapters says that a candidate was proven, and clients get it at once."""

import asyncio

from fastapi import APIRouter, Request, Response

from finetune_api.contract import PROMOTE_PATH
from finetune_api.serving import PromotionRequest
from finetune_inference.api.generation import ServerState

router = APIRouter()


@router.post(PROMOTE_PATH, status_code=204)
async def promote(body: PromotionRequest, request: Request) -> Response:
    """Answers when the adapter's own name means the candidate; requests that run keep the version they began with."""
    serving: ServerState = request.app.state.serving
    loop = asyncio.get_running_loop()
    await loop.run_in_executor(serving.reading, serving.service.promote, body.candidate, body.token, body.digest)
    return Response(status_code=204)

"""POST /promote: the writer of the adapter list reports a verified candidate, and clients get it at once."""

import asyncio

from fastapi import APIRouter, Request, Response

from finetune_api.contract import PROMOTE_PATH
from finetune_api.serving import PromotionRequest
from finetune_inference.api.generation import server_state
from finetune_inference.api.json_body import JsonRoute

router = APIRouter(route_class=JsonRoute)


@router.post(PROMOTE_PATH, status_code=204)
async def promote(body: PromotionRequest, request: Request) -> Response:
    """Promote a candidate to its adapter's own name, and then answer. Running requests keep their version."""
    server = server_state(request)
    loop = asyncio.get_running_loop()
    await loop.run_in_executor(server.reading, server.service.promote, body.candidate, body.token, body.digest)
    return Response(status_code=204)

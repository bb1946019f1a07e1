"""GET /healthz, /readyz and /metrics: for the kubelet and Prometheus."""

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from finetune_inference.api.generation import server_state
from finetune_inference.api.metrics import CONTENT_TYPE

router = APIRouter()


@router.get("/healthz")
async def healthz(request: Request) -> Response:
    """Return 200 while the process loads or serves, and 503 once its engine has ended."""
    failure = server_state(request).service.failure
    return JSONResponse({"status": "failed", "reason": failure}, 503) if failure else JSONResponse({"status": "ok"})


@router.get("/readyz")
async def readyz(request: Request) -> Response:
    """Return 200 while requests are answered: the model is loaded, a token was generated, and the process is not draining."""
    service = server_state(request).service
    if service.ready:
        problem = {"adapterList": service.adapter_list_problem} if service.adapter_list_problem else {}
        return JSONResponse({"status": "ready", "refusedAdapters": service.refused, **problem})
    status = "draining" if service.draining else "failed" if service.failure else "loading"
    return JSONResponse({"status": status, "reason": service.failure}, 503)


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Return the Prometheus metrics."""
    return Response(server_state(request).metrics.render(), headers={"Content-Type": CONTENT_TYPE})

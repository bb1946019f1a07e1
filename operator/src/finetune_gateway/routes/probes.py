"""`/healthz` and `/readyz` for the kubelet. No token, no information beyond yes and no."""

from fastapi import APIRouter

from finetune_gateway.dependencies import TheCluster
from finetune_gateway.errors import UnavailableError
from finetune_gateway.openapi import refusals
from finetune_gateway.schemas import Health

router = APIRouter(tags=["probes"])


@router.get("/healthz", response_model=Health, summary="The process answers")
async def healthz() -> Health:
    """Alive. Says nothing about the API server: restarting the gateway would not bring that back."""
    return Health()


@router.get("/readyz", response_model=Health, summary="The API server answers", responses=refusals(503))
async def readyz(cluster: TheCluster) -> Health:
    """Whether requests can be served; remembered for a few seconds."""
    if not await cluster.is_ready():
        raise UnavailableError("The API server cannot be reached.")
    return Health()

"""`/healthz` and `/readyz` for the kubelet. They need no token and reveal nothing else."""

from fastapi import APIRouter

from finetune_gateway.dependencies import TheCluster
from finetune_gateway.errors import UnavailableError
from finetune_gateway.openapi import refusals
from finetune_gateway.schemas import Health

router = APIRouter(tags=["probes"])


@router.get("/healthz", response_model=Health, summary="The process answers")
async def healthz() -> Health:
    """Report that the process is alive. The API server does not matter, because a restart of the gateway would not help it."""
    return Health()


@router.get("/readyz", response_model=Health, summary="The API server answers", responses=refusals(503))
async def readyz(cluster: TheCluster) -> Health:
    """Report whether requests can be served. The answer is reused for a few seconds."""
    if not await cluster.is_ready():
        raise UnavailableError("The API server cannot be reached.")
    return Health()

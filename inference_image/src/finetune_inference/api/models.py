"""GET /v1/models: the base model and the loaded adapters."""

from typing import Annotated

from fastapi import APIRouter, Path, Request

from finetune_inference.adapters.registry import LoadedModel
from finetune_inference.api.generation import server_state
from finetune_inference.api.responses import ModelCard, ModelList
from finetune_inference.inference import InferenceService

router = APIRouter()


@router.get("/v1/models")
async def list_models(request: Request) -> ModelList:
    """List the base model and its loaded adapters."""
    service = server_state(request).service
    return ModelList(data=[_model_card(service, model) for model in service.models()])


@router.get("/v1/models/{name:path}")
async def retrieve_model(name: Annotated[str, Path()], request: Request) -> ModelCard:
    """Return one model; for a refused adapter, 404 with the reason."""
    service = server_state(request).service
    return _model_card(service, service.model(name))


def _model_card(service: InferenceService, model: LoadedModel) -> ModelCard:
    return ModelCard(
        id=model.name,
        created=model.created,
        root=model.root,
        parent=model.parent,
        max_model_len=service.facts.context_length,
        digest=model.adapter.digest if model.adapter else None,
    )

"""The desired state of an InferenceService, built once per reconcile: decisions compare it with what exists. Pure."""

from finetune_api.v1alpha1 import InferenceService
from finetune_operator.reconcile.service.plan import Desired
from finetune_operator.reconcile.service.served_versions import listed_adapters
from finetune_operator.resources.adapter_list import build_adapter_list, is_rolling, list_hash
from finetune_operator.resources.serving import (
    build_serving_children,
    encoded_config,
    model_name,
    server_image,
    service_url,
)
from finetune_operator.settings import Settings


def build_desired(service: InferenceService, settings: Settings) -> Desired | None:
    """Build what should exist for the service; None if the operator has no image of its engine."""
    if server_image(service, settings) is None:
        return None
    listed = listed_adapters(service, service.status.adapters, settings)
    return Desired(
        children=tuple(build_serving_children(service, listed, settings)),
        listed=listed,
        list_hash="" if is_rolling(service) else list_hash(build_adapter_list(service, listed)),
        config=encoded_config(service),
        url=service_url(service, settings),
        model_name=None if service.spec.merge_adapter else model_name(service),
    )

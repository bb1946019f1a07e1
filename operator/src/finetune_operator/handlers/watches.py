"""All watches in one place: our two kinds, and the children that carry our label."""

from collections.abc import Callable
from typing import Any, Final

import kopf

from finetune_api.contract import (
    FINETUNE_JOB_KIND,
    FINETUNE_JOB_PLURAL,
    GROUP,
    INFERENCE_SERVICE_KIND,
    INFERENCE_SERVICE_PLURAL,
    VERSION,
)
from finetune_operator.handlers.keys import Key, keys_of
from finetune_operator.resources.labels import LABEL_MANAGED_BY, MANAGED_BY

Mark = Callable[[Key], None]
"""Thread-safe: kopf runs in a thread of its own."""

CHILDREN: Final = (("batch", "v1", "jobs"), ("", "v1", "pods"), ("apps", "v1", "deployments"))
"""Kinds of children whose changes matter at once. Services and budgets are repaired by the resync."""


def build_registry(mark: Mark) -> kopf.OperatorRegistry:
    """Return a fresh registry with all handlers."""
    registry = kopf.OperatorRegistry()

    @kopf.on.event(GROUP, VERSION, FINETUNE_JOB_PLURAL, registry=registry)
    async def finetune_job_changed(namespace: str | None, name: str, **_: Any) -> None:
        mark(Key(FINETUNE_JOB_KIND, namespace or "", name))

    @kopf.on.event(GROUP, VERSION, INFERENCE_SERVICE_PLURAL, registry=registry)
    async def inference_service_changed(namespace: str | None, name: str, meta: kopf.Meta, **_: Any) -> None:
        mark(Key(INFERENCE_SERVICE_KIND, namespace or "", name))
        mark_owners(meta, mark)

    async def child_changed(meta: kopf.Meta, **_: Any) -> None:
        mark_owners(meta, mark)

    for group, version, plural in CHILDREN:
        kopf.on.event(
            group, version, plural, labels={LABEL_MANAGED_BY: MANAGED_BY}, registry=registry, id=f"{plural}-changed"
        )(child_changed)
    return registry


def mark_owners(meta: kopf.Meta, mark: Mark) -> None:
    """Mark the objects that the labels say this one belongs to."""
    for key in keys_of(meta):
        mark(key)

"""The one status write of a reconcile, and the Events that follow it."""

import hashlib
import logging
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from finetune_api.base import StatusModel
from finetune_api.contract import API_VERSION
from finetune_operator.errors import ClusterError
from finetune_operator.io.cluster import Resource
from finetune_operator.kubernetes_types import Raw
from finetune_operator.process import metrics
from finetune_operator.reconcile.context import Context
from finetune_operator.reconcile.events import EventDraft
from finetune_operator.resources.labels import MANAGED_BY

logger = logging.getLogger(__name__)

MAX_NOTE_BYTES = 1024
"""Longest note of an Event; the API server refuses a longer one."""


async def write_status(
    context: Context,
    resource: Resource,
    raw: Raw,
    kind: str,
    old: StatusModel,
    new: StatusModel,
    events: Iterable[EventDraft],
) -> bool:
    """Write `new` over `old` if they differ; then post the events. Raises ClusterError on a conflict."""
    if new is old:
        return False
    status = new.to_dict()
    patch = merge_patch(old.to_dict(), status)
    if not patch:
        return False
    metadata = raw["metadata"]
    if not await context.cluster.patch_status(resource, metadata, patch):
        return False
    metrics.STATUS_WRITES.labels(kind).inc()
    name = f"{metadata['namespace']}/{metadata['name']}"
    logger.info("status", extra={"kind": kind, "object": name, **{k: status.get(k) for k in ("phase", "reason")}})
    for event in events:
        await post_event(context, raw, kind, event)
    return True


async def post_event(context: Context, raw: Raw, kind: str, draft: EventDraft) -> None:
    """Post an Event about an object; one that is refused is logged."""
    try:
        await context.cluster.create_event(
            raw["metadata"]["namespace"], build_event(raw, kind, draft, datetime.now(UTC))
        )
    except ClusterError as error:
        # An Event is a courtesy; the status, which is written, is the record.
        logger.warning("event was not posted", extra={"error": str(error)})


def build_event(raw: Raw, kind: str, draft: EventDraft, now: datetime) -> Raw:
    """Build an events.k8s.io/v1 Event. Its name follows from its content, so that a repeated reconcile posts it once."""
    metadata = raw["metadata"]
    identity = "\n".join((metadata["uid"], draft.reason, draft.message))
    suffix = hashlib.sha256(identity.encode()).hexdigest()[:16]
    return {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": f"{metadata['name']}.{suffix}", "namespace": metadata["namespace"]},
        "eventTime": now.isoformat(timespec="microseconds").replace("+00:00", "Z"),
        "reportingController": f"finetune.dev/{MANAGED_BY}",
        "reportingInstance": MANAGED_BY,
        "action": draft.reason,
        "reason": draft.reason,
        "note": draft.message.encode()[:MAX_NOTE_BYTES].decode(errors="ignore"),
        "type": "Warning" if draft.is_warning else "Normal",
        "regarding": {
            "apiVersion": API_VERSION,
            "kind": kind,
            "name": metadata["name"],
            "namespace": metadata["namespace"],
            "uid": metadata["uid"],
        },
    }


def merge_patch(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Return the RFC 7386 patch that turns `old` into `new`; empty if they are equal. Lists are replaced whole."""
    patch: dict[str, Any] = dict.fromkeys(old.keys() - new.keys())
    for key, value in new.items():
        before = old.get(key)
        if isinstance(value, dict) and isinstance(before, dict):
            if inner := merge_patch(before, value):
                patch[key] = inner
        elif key not in old or value != before:
            patch[key] = value
    return patch

"""Checks of everything that arrives as a reply of the API server: one door, behind which objects have an identity and a kind.

A proxy between operator and API server answers with pages of its own, cuts documents, or redirects to a login. Such a reply
must neither end the operator nor be taken for the state of the cluster: an HTML page with status 404 does not say that an
object is gone.
"""

import json
import logging
from dataclasses import dataclass
from typing import Any, Final

from finetune_operator.errors import ClusterError, MalformedReplyError
from finetune_operator.kubernetes_types import Raw, map_of, text_of
from finetune_operator.process import metrics

logger = logging.getLogger(__name__)

STATUS_KIND: Final = "Status"
"""Kind of the API server's own errors, and of its confirmation of a DELETE."""
IDENTITY: Final = ("name", "namespace", "uid", "resourceVersion")
"""Fields of `metadata` that every stored object has."""
UNSIGNED_STATUSES: Final = frozenset({401, 429})
"""Client errors that are no statement about an object, so that it does not matter who answers them."""
SHOWN_CHARACTERS: Final = 120
BOOKMARK: Final = "BOOKMARK"
CHANGES: Final = frozenset({"ADDED", "MODIFIED", "DELETED", BOOKMARK})
"""Types of the events of a watch, without ERROR."""
Change = tuple[str, Raw]
"""Type of an event of a watch, and its object."""


@dataclass(frozen=True)
class Request:
    """A request, as messages name it."""

    verb: str
    what: str

    def refuse(self, problem: str, text: bytes) -> MalformedReplyError:
        """Count the malformed reply, and return the error for it."""
        metrics.MALFORMED_REPLIES.labels(self.verb).inc()
        shown = " ".join(text[:SHOWN_CHARACTERS].decode(errors="replace").split())
        hint = "is there a proxy between the operator and the API server?"
        return MalformedReplyError(self.verb, self.what, f"{problem}; {hint} The reply begins with {shown!r}")


@dataclass(frozen=True)
class Page:
    """One page of a LIST."""

    items: list[Raw]
    version: str
    """resourceVersion of the whole list."""
    following: str
    """Token of the next page; empty for the last."""


def read_object(request: Request, text: bytes, kind: str, *, may_be_status: bool = False) -> Raw:
    """Return the object of a successful reply. Raises MalformedReplyError for anything else."""
    reply = _document(request, text)
    if may_be_status and reply.get("kind") == STATUS_KIND:
        return reply
    if reply.get("kind") != kind or not isinstance(reply.get("metadata"), dict):
        raise request.refuse(f"the reply is no {kind}", text)
    return reply


def read_page(request: Request, text: bytes, kind: str) -> Page:
    """Return a page of a LIST. Raises MalformedReplyError for anything else."""
    reply = _document(request, text)
    items = reply.get("items") or []
    if reply.get("kind") != f"{kind}List" or not isinstance(items, list):
        raise request.refuse(f"the reply is no {kind}List", text)
    try:
        metadata = map_of(reply, "metadata")
        version, following = text_of(metadata, "resourceVersion"), text_of(metadata, "continue")
    except TypeError as error:
        raise request.refuse(f"the metadata of the {kind}List cannot be read ({error})", text) from None
    return Page([item for item in items if is_identified(request, item)], version, following)


def read_change(request: Request, line: bytes, kind: str) -> Change | None:
    """Return the change in a line of a watch; None for an object that cannot be identified. Raises ClusterError for an ERROR."""
    event = _document(request, line)
    change, raw = event.get("type"), event.get("object")
    if not isinstance(raw, dict):
        raise request.refuse("an event of the watch has no object", line)
    if change == "ERROR":
        code = raw.get("code")
        raise ClusterError(request.verb, request.what, code if isinstance(code, int) else 500, str(raw.get("message")))
    if change not in CHANGES or raw.get("kind") != kind:
        raise request.refuse(f"an event of the watch is about no {kind}", line)
    if change == BOOKMARK:
        metadata = raw.get("metadata")
        if not isinstance(metadata, dict) or not isinstance(metadata.get("resourceVersion"), str):
            raise request.refuse("a bookmark of the watch has no version", line)
        return change, raw
    return (change, raw) if is_identified(request, raw) else None


def read_error(request: Request, status: int, text: bytes) -> ClusterError:
    """Return the error for a reply that is no success. Statements about objects count only in the API server's own form."""
    try:
        reply = json.loads(text)
        message = reply["message"] if reply["kind"] == STATUS_KIND else None
    except (ValueError, KeyError, TypeError):
        message = None
    if not isinstance(message, str):
        if 400 <= status < 500 and status not in UNSIGNED_STATUSES:
            return request.refuse(f"the error {status} is not from an API server", text)
        message = text[:300].decode(errors="replace")
    return ClusterError(request.verb, request.what, status, message)


def is_identified(request: Request, item: Any) -> bool:
    """Tell whether an item has the identity that every stored object has; one without it is logged and left out."""
    metadata = item.get("metadata") if isinstance(item, dict) else None
    if isinstance(metadata, dict) and all(isinstance(metadata.get(key), str) and metadata[key] for key in IDENTITY):
        return True
    metrics.MALFORMED_REPLIES.labels(request.verb).inc()
    logger.error("object without an identity is ignored", extra={"request": f"{request.verb} {request.what}"})
    return False


def _document(request: Request, text: bytes) -> Raw:
    try:
        reply = json.loads(text)
    except (ValueError, RecursionError):
        raise request.refuse("the reply is not JSON" if text else "the reply is empty", text) from None
    if not isinstance(reply, dict):
        raise request.refuse("the reply is no object", text)
    return reply

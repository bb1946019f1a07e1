"""Translation of requests to custom resources and back. Pure: random suffixes are parameters."""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any, Final

from pydantic import ValidationError

from finetune_api.conditions import Phase
from finetune_api.contract import API_VERSION, FINETUNE_JOB_KIND, GROUP
from finetune_api.v1alpha1 import FinetuneJobStatus
from finetune_api.validation import problems_of
from finetune_gateway.errors import InvalidRequestError, request_problems
from finetune_gateway.schemas import Endpoint, FinetuneRequest, Problem, State, Task, TaskPage

Raw = dict[str, Any]

ANNOTATION_REQUEST_DIGEST: Final = f"{GROUP}/request-digest"
"""Annotation with the digest of the request of an Idempotency-Key, which tells a repeat from a different request."""
NAME_PREFIX: Final = "ft"
"""Prefix of generated names, because the name of a Service must begin with a letter."""
SUFFIX_ALPHABET: Final = "bcdfghjklmnpqrstvwxz2456789"
"""Characters of generated suffixes, as in Kubernetes: no vowels, so no words, and no lookalikes."""
SUFFIX_LENGTH: Final = 8
STEM_LENGTH: Final = 30
KEY_DIGEST_LENGTH: Final = 20
"""Hex characters of an Idempotency-Key's digest: 80 bits rule out accidental collisions."""

STATE_BY_PHASE: Final[Mapping[str, State]] = {
    Phase.PENDING: State.PENDING,
    Phase.VALIDATING: State.PENDING,
    Phase.QUEUED: State.PENDING,
    Phase.SCHEDULING: State.PENDING,
    Phase.RUNNING: State.RUNNING,
    Phase.RETRYING: State.RUNNING,
    Phase.PUBLISHING: State.RUNNING,
    Phase.DEPLOYING: State.RUNNING,
    Phase.VERIFYING: State.RUNNING,
    Phase.SUSPENDING: State.SUSPENDED,
    Phase.SUSPENDED: State.SUSPENDED,
    Phase.SUCCEEDED: State.SUCCEEDED,
    Phase.FAILED: State.FAILED,
    Phase.CANCELLED: State.CANCELLED,
}
"""State of every phase; a test checks that none is missing."""
ENDED: Final = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED})


def parse_request(body: bytes) -> FinetuneRequest:
    """Parse a body; raises InvalidRequestError with every problem.

    Parsing is strict, as in the API server, which refuses "8" for a number.
    """
    try:
        return FinetuneRequest.model_validate_json(body, strict=True, by_alias=True, by_name=False)
    except ValidationError as error:
        raise InvalidRequestError(request_problems(error, body)) from None


def chosen_namespace(in_query: str | None, in_body: str | None, default: str) -> str:
    """Return the namespace of a request; raises InvalidRequestError if query and body name different ones."""
    if in_query and in_body and in_query != in_body:
        raise InvalidRequestError(
            [Problem(field="namespace", message=f"must be {in_query}, as in the query, or absent", found=in_body)]
        )
    return in_body or in_query or default


def generated_name(request: FinetuneRequest, suffix: str) -> str:
    """Return a readable name: the adapter or model, and a random suffix."""
    stem = request.output.adapter_name or request.model.source.rsplit("/", 1)[-1]
    readable = re.sub(r"[^a-z0-9]+", "-", stem.lower())[:STEM_LENGTH].strip("-")
    return "-".join(part for part in (NAME_PREFIX, readable, suffix) if part)


def idempotent_name(key: str) -> str:
    """Return the name for an Idempotency-Key, which does not depend on the body."""
    return f"{NAME_PREFIX}-{hashlib.sha256(key.encode()).hexdigest()[:KEY_DIGEST_LENGTH]}"


def request_digest(request: FinetuneRequest) -> str:
    """Return the digest of a request, which does not depend on the spelling of its JSON."""
    canonical = json.dumps(_as_written(request), sort_keys=True, separators=(",", ":"))
    return f"sha256:{hashlib.sha256(canonical.encode()).hexdigest()}"


def build_manifest(request: FinetuneRequest, namespace: str, name: str, digest: str | None) -> Raw:
    """Build the FinetuneJob of a request, without defaults, which the API server fills in."""
    metadata: Raw = {"name": name, "namespace": namespace}
    if digest is not None:
        metadata["annotations"] = {ANNOTATION_REQUEST_DIGEST: digest}
    spec = {k: v for k, v in _as_written(request).items() if k not in ("name", "namespace")}
    return {"apiVersion": API_VERSION, "kind": FINETUNE_JOB_KIND, "metadata": metadata, "spec": spec}


def is_repeat(existing: Raw, digest: str) -> bool:
    """Return whether an existing object was created by the same request with the same key."""
    annotations = existing["metadata"].get("annotations") or {}
    return bool(annotations.get(ANNOTATION_REQUEST_DIGEST) == digest)


def task_from(raw: Raw) -> Task:
    """Convert an object to a task. A status that cannot be read is reported in the task, not raised."""
    metadata = raw["metadata"]
    spec = raw.get("spec") or {}
    common = {
        "task_id": metadata["name"],
        "namespace": metadata["namespace"],
        "creation_time": metadata.get("creationTimestamp"),
    }
    try:
        status = FinetuneJobStatus.model_validate(raw.get("status") or {})
    except ValidationError as error:
        message = f"status.{problems_of(error, document=raw['status'])[0]}; this gateway cannot read the status"
        return Task(**common, state=State.PENDING, phase="Unknown", reason="StatusUnreadable", message=message)
    written = status.to_dict()
    return Task(
        **common,
        state=state_from(status.phase, cancel=bool(spec.get("cancel"))),
        phase=status.phase or Phase.PENDING,
        reason=status.reason,
        message=status.message,
        attempt=status.attempt,
        progress=status.progress,
        metrics=status.metrics,
        adapter=status.adapter,
        endpoint=_endpoint(spec, status, metadata["name"]),
        last_failure=status.last_failure,
        start_time=written.get("startTime"),
        completion_time=written.get("completionTime"),
    )


def page_from(raw: Raw) -> TaskPage:
    """Convert a list of objects to a page of tasks."""
    return TaskPage(
        items=[task_from(item) for item in raw["items"]],
        next=(raw.get("metadata") or {}).get("continue") or None,
    )


def state_from(phase: str | None, *, cancel: bool) -> State:
    """Return the state of a phase. An unknown phase comes from a newer operator, so the job counts as running."""
    state = STATE_BY_PHASE.get(phase or Phase.PENDING, State.RUNNING)
    return State.CANCELLING if cancel and state not in ENDED else state


def _as_written(request: FinetuneRequest) -> Raw:
    return request.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude_none=True)


def _endpoint(spec: Raw, status: FinetuneJobStatus, name: str) -> Endpoint | None:
    if status.serving is None:
        return None
    adapter = status.adapter.name if status.adapter else (spec.get("output") or {}).get("adapterName") or name
    serving = status.serving
    return Endpoint(url=serving.url, model=adapter, ready=serving.ready, verified=serving.verified)

"""Projections of objects to what reconciles read, for the caches: the rest of ten thousand pods would only fill memory.

A part that has another form than its kind promises is kept as it is, so that the door can say what is wrong with it.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final

from finetune_api.conditions import TERMINAL_PHASES, Phase
from finetune_operator.kubernetes_types import Raw
from finetune_operator.resources.annotations import (
    ANNOTATION_ADAPTER_LIST,
    ANNOTATION_CONFIG,
    CONDITION_ADAPTERS_VERIFIED,
)
from finetune_operator.resources.labels import LABEL_JOB_UID

METADATA: Final = frozenset(
    {
        "name",
        "namespace",
        "uid",
        "resourceVersion",
        "labels",
        "ownerReferences",
        "creationTimestamp",
        "deletionTimestamp",
    }
)
JOB_STATUS: Final = frozenset({"startTime", "conditions"})
JOB_CONDITION: Final = frozenset({"type", "status", "message"})
POD_STATUS: Final = frozenset({"phase", "reason", "message", "podIP"})
CONDITION: Final = frozenset({"type", "status", "reason", "message", "lastTransitionTime"})
CONTAINER: Final = frozenset({"name", "state", "lastState", "restartCount"})
TRAINING_CONDITIONS: Final = frozenset({"PodScheduled", "DisruptionTarget"})
"""Types of conditions of a training pod that decisions read; the others would only cause reconciles."""
SERVER_CONDITIONS: Final = TRAINING_CONDITIONS | {"Ready", "ContainersReady", CONDITION_ADAPTERS_VERIFIED}
ANNOTATIONS: Final = frozenset({ANNOTATION_CONFIG, ANNOTATION_ADAPTER_LIST})
"""Annotations of server pods that decisions read."""

PHASES: Final = frozenset(Phase)
MALFORMED: Final = "Malformed"
"""Phase in the gauge of a job whose status cannot be read."""


@dataclass(frozen=True, slots=True)
class JobSummary:
    """Facts about a FinetuneJob for readers of all jobs."""

    phase: str
    is_settled: bool
    """It has ended, and nothing is left to do unless something around it changes."""
    has_endpoint: bool = False
    """Its status follows that of an endpoint, also after its end."""


def summarize_job(raw: Raw) -> JobSummary:
    """Return the facts about a FinetuneJob of any form."""
    spec = raw.get("spec")
    return JobSummary(phase_of(raw), is_settled(raw), isinstance(spec, dict) and spec.get("serve") is not None)


def is_settled(raw: Raw) -> bool:
    """Tell whether a FinetuneJob has nothing left to do: thousands of finished jobs must not cost reads for ever.

    Any JSON may come as `spec` or `status`. One that is not an object is for the reconcile, which says so.
    """
    spec, status = raw.get("spec"), raw.get("status")
    if not isinstance(spec, dict) or not isinstance(status, dict) or phase_of(raw) not in TERMINAL_PHASES:
        return False
    has_ttl = "ttlSecondsAfterFinished" in spec
    return not has_ttl and status.get("observedGeneration") == raw["metadata"].get("generation")


def phase_of(raw: Raw) -> str:
    """Return the phase of a FinetuneJob as the gauge counts it."""
    status = raw.get("status")
    phase = status.get("phase") if isinstance(status, dict) else status
    if not phase:
        return Phase.PENDING
    # A label of the gauge: nobody can make it grow with values of their own.
    return phase if isinstance(phase, str) and phase in PHASES else MALFORMED


def is_finished_job(raw: Raw) -> bool:
    """Tell whether the Job controller will make no further pod of this Job."""
    conditions = _map(raw.get("status")).get("conditions")
    ended = (
        [c for c in conditions if _map(c).get("type") in ("Complete", "Failed")] if isinstance(conditions, list) else []
    )
    return any(condition.get("status") == "True" for condition in ended)


def is_finished_pod(raw: Raw) -> bool:
    """Tell whether no process of this pod runs or will run again."""
    return _map(raw.get("status")).get("phase") in ["Succeeded", "Failed"]


def project_job(raw: Raw) -> Raw:
    """Return what reconciles read of a batch/v1 Job."""
    status = _pick(raw.get("status"), JOB_STATUS)
    if isinstance(status, dict):
        status = _each(status, "conditions", JOB_CONDITION)
    return {"metadata": _pick(raw["metadata"], METADATA), "spec": _pick(raw.get("spec"), {"suspend"}), "status": status}


def project_pod(raw: Raw) -> Raw:
    """Return what reconciles read of a Pod."""
    metadata, status = raw["metadata"], raw.get("status")
    is_training = LABEL_JOB_UID in _map(metadata.get("labels"))
    kept = _pick(metadata, METADATA)
    annotations = metadata.get("annotations")
    if not isinstance(annotations, dict):
        kept["annotations"] = annotations
    elif not is_training:
        kept["annotations"] = _pick(annotations, ANNOTATIONS)
    if isinstance(status, dict):
        conditions = _conditions(status.get("conditions"), TRAINING_CONDITIONS if is_training else SERVER_CONDITIONS)
        containers = {key: status[key] for key in ("initContainerStatuses", "containerStatuses") if key in status}
        status = {**_pick(status, POD_STATUS), "conditions": conditions, **containers}
        status = _each(_each(status, "initContainerStatuses", CONTAINER), "containerStatuses", CONTAINER)
    spec = {} if is_training else _pick(raw.get("spec"), {"readinessGates"})
    return {"metadata": kept, "spec": spec, "status": status}


def _conditions(conditions: Any, kinds: Collection[str]) -> Any:
    if not isinstance(conditions, list):
        return conditions
    return [_pick(c, CONDITION) for c in conditions if not isinstance(c, dict) or c.get("type") in [*kinds]]


def _each(raw: Raw, key: str, fields: Collection[str]) -> Raw:
    items = raw.get(key)
    return {**raw, key: [_pick(item, fields) for item in items]} if isinstance(items, list) else raw


def _pick(value: Any, fields: Collection[str]) -> Any:
    return {key: inner for key, inner in value.items() if key in fields} if isinstance(value, dict) else value


def _map(value: Any) -> Raw:
    return value if isinstance(value, dict) else {}

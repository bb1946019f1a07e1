"""Raw objects as the API server stores them, and the same in forms that no kind promises."""

import copy
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

from finetune_operator.resources.labels import LABEL_ATTEMPT, LABEL_JOB_NAME, LABEL_JOB_UID
from finetune_operator.resources.serving import build_serving_children
from support.objects.factories import a_finetune_job, an_inference_service
from support.objects.operator_objects import CREATED, SETTINGS, a_service

TIME = CREATED.isoformat()
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2**70) | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


def identified(raw: dict[str, Any], name: str, **metadata: Any) -> dict[str, Any]:
    identity = {"name": name, "namespace": "ml", "uid": f"uid-{name}", "resourceVersion": "7", "generation": 1}
    return {**raw, "metadata": {**raw.get("metadata", {}), **identity, "creationTimestamp": TIME, **metadata}}


LABELS = {LABEL_JOB_NAME: "tone", LABEL_JOB_UID: "uid-tone", LABEL_ATTEMPT: "1"}
CONDITION = {"type": "Running", "status": "True", "reason": "Training", "message": "m", "lastTransitionTime": TIME}
RUNNING = {"phase": "Running", "conditions": [CONDITION], "attempt": 1, "observedGeneration": 1}
JOB = identified({**a_finetune_job("tone", "ml"), "status": RUNNING}, "tone")
CHILD = identified(
    {"spec": {"suspend": False}, "status": {"startTime": TIME, "conditions": []}}, "tone-1", labels=LABELS
)
STATE = {"name": "trainer", "state": {"running": {"startedAt": TIME}}, "restartCount": 0}
POD_STATUS = {
    "phase": "Running",
    "conditions": [{"type": "PodScheduled", "status": "True", "reason": "", "message": ""}],
    "initContainerStatuses": [{"name": "validate", "state": {"terminated": {"exitCode": 0, "finishedAt": TIME}}}],
    "containerStatuses": [STATE],
}
POD = identified({"spec": {}, "status": POD_STATUS}, "tone-1-x", labels=LABELS, annotations={"a": "b"})
SERVICE = identified({**an_inference_service("chat", "ml"), "status": {"phase": "Ready", "conditions": []}}, "chat")
CHILDREN = {child["kind"]: child for child in build_serving_children(a_service(), (), SETTINGS)}
DEPLOYMENT = identified({**CHILDREN["Deployment"], "status": {"replicas": 1, "readyReplicas": 1}}, "chat-server")


def paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in children:
        yield from paths(inner, (*path, key))


@st.composite
def poisoned(draw: st.DrawFn, raw: dict[str, Any]) -> dict[str, Any]:
    """The object with another value, or none, at one to three places. Its identity stays, as the API server sees to that."""
    result = copy.deepcopy(raw)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(list(paths(result))))
        holder: Any = result
        for key in path[:-1]:
            holder = holder[key]
        holder[path[-1]] = draw(JSON)
        if not isinstance(result.get("metadata"), dict):
            result["metadata"] = {}
        result["metadata"] |= {k: v for k, v in raw["metadata"].items() if k in ("name", "namespace", "uid")}
        result["metadata"]["resourceVersion"] = "7"
    return result

"""Keys of the work queue: the objects that are reconciled, and how their children lead to them."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from finetune_api.contract import FINETUNE_JOB_KIND, INFERENCE_SERVICE_KIND
from finetune_operator.resources.labels import LABEL_JOB_NAME, LABEL_SERVICE_NAME


class Key(NamedTuple):
    """An object of ours."""

    kind: str
    namespace: str
    name: str


def keys_of(metadata: Mapping[str, Any]) -> list[Key]:
    """Read from the labels of a child or an owned object which objects it belongs to."""
    labels, namespace = metadata.get("labels") or {}, metadata.get("namespace") or ""
    keys = []
    if name := labels.get(LABEL_JOB_NAME):
        keys.append(Key(FINETUNE_JOB_KIND, namespace, name))
    if name := labels.get(LABEL_SERVICE_NAME):
        keys.append(Key(INFERENCE_SERVICE_KIND, namespace, name))
    return keys

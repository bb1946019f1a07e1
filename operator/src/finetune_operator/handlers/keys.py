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
    """Read from the labels of a child or an owned object which objects it belongs to; none from labels that are no texts."""
    labels, namespace = metadata.get("labels"), metadata.get("namespace") or ""
    if not isinstance(labels, Mapping):
        return []
    owners = [(FINETUNE_JOB_KIND, labels.get(LABEL_JOB_NAME)), (INFERENCE_SERVICE_KIND, labels.get(LABEL_SERVICE_NAME))]
    return [Key(kind, namespace, name) for kind, name in owners if name and isinstance(name, str)]

"""The door between raw objects and decisions: behind it everything has the types that its kind promises.

Nothing that lies in etcd may harm anything but itself. Whatever is wrong with an object becomes one error with its name, which
ends the reconcile of its owner and of nobody else.
"""

from collections.abc import Callable, Iterable
from typing import TypeVar

from finetune_api.v1alpha1.common import OwnerReference
from finetune_operator.errors import UnreadableObjectError
from finetune_operator.kubernetes_types import Raw, map_of, number_of, texts_of
from finetune_operator.reconcile.ownership import owner_references

T = TypeVar("T")

MAX_PROBLEM = 300
"""Longest problem, in characters."""
COUNTS = ("observedGeneration", "replicas", "updatedReplicas", "readyReplicas")
"""Fields of a Deployment's status that decisions compare."""


def read_children(parse: Callable[[Raw], T], kind: str, raws: Iterable[Raw]) -> tuple[T, ...]:
    """Parse the children of an object. Raises UnreadableObjectError for the first that cannot be read."""
    return tuple(_guarded(parse, kind, raw) for raw in raws)


def read_live(kind: str, raw: Raw) -> Raw:
    """Return a child as it is compared with its manifest, with its kind. Raises UnreadableObjectError."""
    return {"kind": kind, **_guarded(_checked, kind, raw)}


def read_owners(kind: str, raw: Raw) -> list[OwnerReference]:
    """Return the owner references of an object. Raises UnreadableObjectError."""
    return _guarded(owner_references, kind, raw)


def _checked(raw: Raw) -> Raw:
    metadata, status, spec = map_of(raw, "metadata"), map_of(raw, "status"), map_of(raw, "spec")
    owner_references(raw)
    texts_of(metadata, "labels")
    texts_of(metadata, "annotations")
    number_of(metadata, "generation")
    # Other kinds have none of these.
    number_of(spec, "replicas")
    for count in COUNTS:
        number_of(status, count)
    return raw


def _guarded(parse: Callable[[Raw], T], kind: str, raw: Raw) -> T:
    try:
        return parse(raw)
    except Exception as error:
        # Any error: a reader must not have to foresee all forms that an object may have.
        metadata = raw.get("metadata")
        found = metadata if isinstance(metadata, dict) else {}
        name = f"{found.get('namespace')}/{found.get('name')}"
        problem = " ".join(str(error).split())[:MAX_PROBLEM]
        raise UnreadableObjectError(kind, name, problem or type(error).__name__) from error

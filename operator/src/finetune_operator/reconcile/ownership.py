"""The owner of an object that has the name of a child: this very object, a deleted namesake, or somebody else."""

from collections.abc import Sequence
from enum import Enum, auto
from typing import Final

from finetune_api.v1alpha1 import FinetuneJob, InferenceService
from finetune_api.v1alpha1.common import OwnerReference
from finetune_operator.kubernetes_types import Raw, map_of, maps_of

PREDECESSOR_SECONDS: Final = 2.0
"""Pause between two checks that the garbage collector has removed the child of a deleted namesake."""


class Ownership(Enum):
    """Relation of a child to the object that is reconciled."""

    OWN = auto()
    PREDECESSOR = auto()
    """The owner is a deleted object of the same kind and name; the garbage collector is about to remove the child."""
    FOREIGN = auto()


def ownership(owner: FinetuneJob | InferenceService, references: Sequence[OwnerReference]) -> Ownership:
    """Tell from a child's owner references whether `owner` made it."""
    if any(reference.uid == owner.metadata.uid for reference in references):
        return Ownership.OWN
    controller = next((reference for reference in references if reference.controller), None)
    is_namesake = controller is not None and (controller.kind, controller.name) == (owner.kind, owner.metadata.name)
    return Ownership.PREDECESSOR if is_namesake else Ownership.FOREIGN


def owner_references(raw: Raw) -> list[OwnerReference]:
    """Parse the owner references of a raw object."""
    references = maps_of(map_of(raw, "metadata"), "ownerReferences")
    return [OwnerReference.model_validate(reference) for reference in references]

"""Base classes of all our models, and how a model says its CEL rules."""

from typing import Any

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

CEL = "x-kubernetes-validations"
"""Key of CEL rules in a structural schema."""


class SpecModel(BaseModel):
    """What users write: an unknown field is an error, never ignored. Frozen: a spec is a fact."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready dict with camelCase keys; unset optional fields are absent rather than null."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


class StatusModel(BaseModel):
    """What we write: a field of a newer release is ignored, so that a rollback can still read the object."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready dict with camelCase keys; unset optional fields are absent rather than null."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)

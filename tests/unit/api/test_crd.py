"""The converter from pydantic to structural schemas."""

from typing import Annotated

import pytest
from pydantic import Field

from finetune_api.base import SpecModel
from finetune_api.crd import build_crds, immutability_rules, structural_schema


class Inner(SpecModel):
    """Inner."""

    size: Annotated[int, Field(gt=0, le=9)] = 1


class Outer(SpecModel):
    """Outer."""

    inner: Annotated[Inner, Field(description="inner.")] = Field(default_factory=Inner)
    maybe: Annotated[Inner | None, Field(description="maybe.")] = None
    names: list[str]


def test_references_are_inlined_and_optionals_unwrapped() -> None:
    schema = structural_schema(Outer)
    assert schema["required"] == ["names"]
    assert schema["properties"]["maybe"]["type"] == "object"
    assert "$ref" not in str(schema)
    assert "anyOf" not in str(schema)
    assert "title" not in str(schema)


def test_an_object_of_defaults_is_defaulted_but_an_optional_one_stays_absent() -> None:
    properties = structural_schema(Outer)["properties"]
    assert properties["inner"]["default"] == {}
    assert "default" not in properties["maybe"]


def test_exclusive_bounds_become_booleans() -> None:
    size = structural_schema(Inner)["properties"]["size"]
    assert (size["minimum"], size["exclusiveMinimum"], size["maximum"]) == (0, True, 9)


def test_what_has_no_structural_schema_is_refused() -> None:
    class Pair(SpecModel):
        """Pair."""

        pair: tuple[int, str]

    class Either(SpecModel):
        """Either."""

        either: int | list[int]

    for model in (Pair, Either):
        with pytest.raises(ValueError, match="no structural schema"):
            structural_schema(model)


def test_every_field_but_the_mutable_ones_gets_a_transition_rule() -> None:
    rules = immutability_rules(Outer, ("maybe",))
    assert [r["message"].split()[0] for r in rules] == ["spec.inner", "spec.names"]


def test_no_spec_field_can_name_another_namespace() -> None:
    for crd in build_crds().values():
        spec = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
        assert "namespace" not in {key.lower() for key in _keys(spec)}


def _keys(schema: dict[str, object]) -> set[str]:
    properties = schema.get("properties")
    found: set[str] = set()
    if isinstance(properties, dict):
        for name, child in properties.items():
            found |= {name} | _keys(child)
    items = schema.get("items")
    return found | (_keys(items) if isinstance(items, dict) else set())

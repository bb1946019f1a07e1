"""A rule between fields is declared once: pydantic and the API server refuse the same objects, with the same message."""

import pytest
from pydantic import BaseModel, ValidationError

from finetune_api.base import CEL, Rule, SpecModel, at_most_one_of, exactly_one_of, requires
from finetune_api.crd import structural_schema
from finetune_api.v1alpha1 import Evaluation, InferenceServiceSpec


class Meal(SpecModel):
    """Fields that exclude or need each other."""

    RULES = (
        exactly_one_of("softDrink", "beer", "wine"),
        at_most_one_of("fork", "chopSticks"),
        requires("dessert", "spoon", "dessert needs spoon"),
        Rule("!has(self.fork) || self.fork > 0", lambda m: m.fork is None or m.fork > 0, "fork must be positive"),
    )

    soft_drink: int | None = None
    beer: int | None = None
    wine: int | None = None
    fork: int | None = None
    chop_sticks: int | None = None
    dessert: int | None = None
    spoon: int | None = None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "set exactly one of softDrink, beer and wine"),
        ({"softDrink": 1, "wine": 1}, "set exactly one of softDrink, beer and wine"),
        ({"beer": 1, "fork": 1, "chopSticks": 2}, "set at most one of fork and chopSticks"),
        ({"beer": 1, "dessert": 1}, "dessert needs spoon"),
        ({"beer": 1, "fork": 0}, "fork must be positive"),
        ({"dessert": 1}, "set exactly one of softDrink, beer and wine; dessert needs spoon"),
    ],
)
def test_python_refuses_what_breaks_a_rule_and_reports_all_of_them(fields: dict[str, int], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Meal.model_validate(fields)
    assert caught.value.errors()[0]["msg"] == f"Value error, {message}"


def test_what_keeps_all_rules_is_accepted() -> None:
    assert Meal.model_validate({"softDrink": 0, "chopSticks": 2, "dessert": 1, "spoon": 1}).soft_drink == 0


def test_the_schema_has_every_rule_with_the_same_message() -> None:
    rules = structural_schema(Meal)[CEL]
    assert [rule["message"] for rule in rules] == [rule.message for rule in Meal.RULES]
    assert (
        rules[0]["rule"] == "(has(self.softDrink) ? 1 : 0) + (has(self.beer) ? 1 : 0) + (has(self.wine) ? 1 : 0) == 1"
    )
    assert rules[1]["rule"] == "!(has(self.fork) && has(self.chopSticks))"
    assert rules[2]["rule"] == "!has(self.dessert) || has(self.spoon)"


def test_an_optional_object_keeps_the_rules_of_its_model() -> None:
    class Day(SpecModel):
        """An object inside another."""

        meal: Meal | None = None

    assert len(structural_schema(Day)["properties"]["meal"][CEL]) == len(Meal.RULES)


@pytest.mark.parametrize(
    ("model", "fields", "message"),
    [
        (Evaluation, {"fraction": 0.1, "earlyStoppingPatience": 2}, "earlyStoppingPatience counts evaluations"),
        (
            InferenceServiceSpec,
            {
                "model": {"source": "pvc://models/m"},
                "adapters": [{"name": "a", "source": "pvc://one/a"}, {"name": "b", "source": "pvc://two/b"}],
            },
            "all adapters must be on the same claim",
        ),
        (
            InferenceServiceSpec,
            {
                "model": {"source": "pvc://models/m"},
                "adapterClaim": "two",
                "adapters": [{"name": "a", "source": "pvc://one/a"}],
            },
            "all adapters must be on adapterClaim",
        ),
        (
            InferenceServiceSpec,
            {"model": {"source": "pvc://models/m"}, "autoscaling": {"minReplicas": 3, "maxReplicas": 2}},
            "minReplicas must not be greater than maxReplicas",
        ),
    ],
)
def test_the_kinds_use_rules(model: type[BaseModel], fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        model.model_validate(fields)

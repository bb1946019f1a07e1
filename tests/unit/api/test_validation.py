"""Errors of pydantic in plain words."""

from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field, ValidationError

from finetune_api.base import SpecModel
from finetune_api.v1alpha1 import FinetuneJobSpec
from finetune_api.validation import FieldError, problems_of, shown, summary

MINIMAL: dict[str, Any] = {"model": {"source": "pvc://models/m"}, "dataset": {"inline": "{}"}}


class Text(BaseModel):
    """One member of a union."""

    type: Literal["text"]
    text: str


class Picture(BaseModel):
    """The other."""

    type: Literal["picture"]
    picture: str


class Letter(SpecModel):
    """Unions of every kind."""

    body: str | list[Text] | None = None
    attachment: Annotated[Text | Picture, Field(discriminator="type")] | None = None
    token: int | None = None


def sentences(model: type[BaseModel], document: dict[str, Any]) -> list[str]:
    with pytest.raises(ValidationError) as caught:
        model.model_validate(document)
    return [str(p) for p in problems_of(caught.value, document=document, model=model)]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"method": {"lora": {"rank": 0}}}, "method.lora.rank: expected 1 or more, found 0"),
        (
            {"hyperparameters": {"learningRate": "fast"}},
            'hyperparameters.learningRate: expected a number, found "fast"',
        ),
        ({"hyperparameters": {"batchSize": 8.5}}, "hyperparameters.batchSize: expected an integer, found 8.5"),
        (
            {"hyperparameters": {"schedule": "step"}},
            'hyperparameters.schedule: expected linear, cosine or constant, found "step"',
        ),
        ({"suspend": "perhaps"}, 'suspend: expected true or false, found "perhaps"'),
        ({"model": {}}, "model.source: required, but missing"),
        ({"dataset": {}}, "dataset: set exactly one of inline, source and sources"),
        (
            {"method": {"lora": {"targetModules": []}}},
            "method.lora.targetModules: expected at least 1 item, found a list",
        ),
        ({"resources": {"cpu": [1]}}, "resources.cpu: expected an integer or a string, found a list"),
        ({"evaluation": {"fraction": 1}}, "evaluation.fraction: expected 0.5 or less, found 1"),
    ],
)
def test_a_problem_names_the_field_what_is_expected_and_what_was_found(change: dict[str, Any], expected: str) -> None:
    assert sentences(FinetuneJobSpec, MINIMAL | change) == [expected]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"hyperparameters": {"epoch": 3}}, "hyperparameters.epoch: unknown field; did you mean epochs?"),
        ({"method": {"lora": {"r": 8}}}, "method.lora.r: unknown field; did you mean rank?"),
        ({"method": {"lora": {"lora_alpha": 8}}}, "method.lora.lora_alpha: unknown field; did you mean alpha?"),
        ({"learning_rate": 1}, "learning_rate: unknown field; did you mean hyperparameters.learningRate?"),
        ({"dataset": {"inline": "{}", "sorce": "a"}}, "dataset.sorce: unknown field; did you mean source?"),
        ({"zzz": 1}, "zzz: unknown field"),
        ({"a.b": 1}, '["a.b"]: unknown field'),
    ],
)
def test_an_unknown_field_comes_with_the_one_that_was_meant(change: dict[str, Any], expected: str) -> None:
    assert sentences(FinetuneJobSpec, MINIMAL | change) == [expected]


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"body": 5}, "body: expected a string or a list, found 5"),
        ({"body": {"a": 1}}, "body: expected a string or a list, found an object"),
        ({"body": [{"type": "text", "text": "a"}, {"type": "text"}]}, "body[1].text: required, but missing"),
        ({"attachment": {"type": "picture"}}, "attachment.picture: required, but missing"),
        ({"attachment": {"type": "text", "text": 5}}, "attachment.text: expected a string, found 5"),
        ({"attachment": {"type": "film"}}, 'attachment: expected type text or picture, found "film"'),
        ({"attachment": {}}, "attachment: expected an object with type"),
    ],
)
def test_a_union_is_one_problem_without_the_names_of_its_members(document: dict[str, Any], expected: str) -> None:
    assert sentences(Letter, document) == [expected]


def test_a_value_is_shown_on_one_line_bounded_and_without_secrets() -> None:
    assert sentences(Letter, {"token": "s3cr3t"}) == ["token: expected an integer"]
    assert shown("a\nb\ud800" + "c" * 1000) == '"a\\nb?' + "c" * 73 + "…"
    assert shown(10**5000) == "a number with many digits"
    assert shown("https://ann:pw@host/rows?signature=s3cr3t") == '"https://…@host/rows?…"'
    (refused,) = sentences(FinetuneJobSpec, MINIMAL | {"dataset": {"source": "https://ann:pw@host/rows?key=s3cr3t"}})
    assert "pw" not in refused
    assert "s3cr3t" not in refused


def test_a_model_can_name_the_field_at_fault() -> None:
    error = FieldError("stop", "use fewer")
    found = {"type": "value_error", "loc": (), "msg": "", "input": {}, "ctx": {"error": error}}
    assert [str(p) for p in problems_of([found])] == ["stop: use fewer"]


def test_a_summary_says_how_many_problems_it_leaves_out() -> None:
    document = MINIMAL | {f"{letter}{letter}": 1 for letter in "zyxwvuq"}
    with pytest.raises(ValidationError) as caught:
        FinetuneJobSpec.model_validate(document)
    assert summary(problems_of(caught.value)).endswith("; and 2 more")

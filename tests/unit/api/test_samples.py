"""The samples are what newcomers copy: they parse, they show every field, and their data is what it claims to be."""

import json
import re
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel

from finetune_api.v1alpha1 import FinetuneJob, InferenceService

SAMPLES = Path(__file__).resolve().parents[3] / "crds" / "samples"
MODELS = {"FinetuneJob": FinetuneJob, "InferenceService": InferenceService}


def load(name: str) -> FinetuneJob | InferenceService:
    document = yaml.safe_load((SAMPLES / name).read_text())
    return MODELS[document["kind"]].model_validate(document)


@pytest.mark.parametrize("path", sorted(SAMPLES.glob("*.yaml")), ids=lambda path: path.name)
def test_a_sample_is_valid(path: Path) -> None:
    assert load(path.name).metadata.name


@pytest.mark.parametrize("name", ["finetunejob-full.yaml", "inferenceservice-full.yaml"])
def test_a_full_sample_names_every_field(name: str) -> None:
    shown = set(re.findall(r"^[\s#-]*(\w+):", (SAMPLES / name).read_text(), re.MULTILINE))
    assert fields_of(type(load(name)).model_fields["spec"].annotation) - shown == set()


def test_the_full_jobs_values_are_the_defaults_where_it_says_so() -> None:
    full = load("finetunejob-full.yaml").spec.to_dict()
    minimal = load("finetunejob-minimal.yaml").spec.to_dict()
    for part in ("method", "checkpoint", "resources"):
        assert full[part] == minimal[part]


@pytest.mark.parametrize("part", ["train", "heldout"])
def test_rows_are_a_message_and_a_ticket_line(part: str) -> None:
    for row in rows(part):
        assert set(row) == {"prompt", "completion"}
        assert re.fullmatch(r"#[a-z]+ \[[A-Z]+\]", row["completion"])


def test_held_out_rows_are_new_and_cover_every_line() -> None:
    training, held_out = rows("train"), rows("heldout")
    messages = [re.sub(r"\W+", " ", row["prompt"]).lower() for row in training + held_out]
    assert len(messages) == len(set(messages))
    assert len(held_out) >= 24
    assert {row["completion"] for row in held_out} == {row["completion"] for row in training}


def rows(part: str) -> list[dict[str, str]]:
    text = (SAMPLES / "data" / f"support-tickets.{part}.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def fields_of(annotation: Any) -> set[str]:
    """camelCase names of all fields of a model, and of the models in its fields."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        names: set[str] = set()
        for name, field in annotation.model_fields.items():
            names |= {field.alias or name} | fields_of(field.annotation)
        return names
    return set().union(*(fields_of(argument) for argument in get_args(annotation)), set())

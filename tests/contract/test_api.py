"""The API is written once: CRDs, chart copies, pages and samples say what the models say."""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from finetune_api import glossary, reference
from finetune_api.__main__ import WRITE_COMMAND, stale_files
from finetune_api.conditions import ConditionType, Phase
from finetune_api.crd import Schema, build_crds
from finetune_api.reasons import Reason
from finetune_api.v1alpha1 import FinetuneJob, InferenceService

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = REPOSITORY / "crds" / "docs"
SAMPLES = sorted((REPOSITORY / "crds" / "samples").glob("*.yaml"))
KINDS = {"FinetuneJob": FinetuneJob, "InferenceService": InferenceService}


def test_generated_files_are_fresh() -> None:
    stale = [str(path.relative_to(REPOSITORY)) for path in stale_files()]
    assert stale == [], f"run `{WRITE_COMMAND}`"


def fields(schema: Schema, path: str) -> Iterator[tuple[str, str, Schema]]:
    """Path, name and schema of every field below a schema."""
    for name, field in schema.get("properties", {}).items():
        yield f"{path}.{name}", name, field
        yield from fields(field, f"{path}.{name}")
        yield from fields(field.get("items", {}), f"{path}.{name}[]")


def all_fields() -> list[tuple[str, str, Schema]]:
    found = []
    for crd in build_crds().values():
        properties = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]
        for part in ("spec", "status"):
            found += list(fields(properties[part], f"{crd['spec']['names']['kind']}.{part}"))
    return found


def test_the_description_of_every_field_starts_with_its_name() -> None:
    assert [path for path, name, field in all_fields() if not field.get("description", "").startswith(f"{name} ")] == []


def test_every_string_and_list_of_a_spec_has_a_length() -> None:
    """Unbounded values make CEL rules too expensive and objects too large."""
    unbounded = [
        path
        for path, _, field in all_fields()
        if ".spec." in path
        and (
            (field.get("type") == "string" and "maxLength" not in field and "enum" not in field)
            or (field.get("type") == "array" and "maxItems" not in field)
        )
    ]
    assert unbounded == []


@pytest.mark.parametrize("page", reference.PAGES)
def test_pages_begin_with_an_example_and_end_with_reasons(page: str) -> None:
    headings = re.findall(r"^## (.*)$", (PAGES / page).read_text(), re.MULTILINE)
    assert headings[:2] == ["Example", "Writing a spec"]
    assert headings[-2:] == ["Status", "Reasons"]


@pytest.mark.parametrize("page", reference.PAGES)
def test_the_examples_of_pages_are_valid(page: str) -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", (PAGES / page).read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        manifest = yaml.safe_load(block)
        KINDS[manifest["kind"]].model_validate(manifest)


def test_the_job_page_explains_every_phase_and_condition() -> None:
    text = (PAGES / "finetunejob.md").read_text()
    of_services = {ConditionType.READY, ConditionType.PROGRESSING}
    for word in [*Phase, *(set(ConditionType) - of_services)]:
        assert f"\n| `{word}` |" in text, f"{word} is not on the page"
    service = (PAGES / "inferenceservice.md").read_text()
    assert all(f"\n| `{word}` |" in service for word in [*of_services, ConditionType.ADAPTER_VERIFIED])


def test_every_condition_says_when_it_is_true_and_which_kind_has_it() -> None:
    entries = {entry.name: entry for kind in KINDS for entry in glossary.conditions(kind)}
    assert set(entries) == set(ConditionType)
    for entry in entries.values():
        assert entry.meaning.endswith(".")
        assert entry.set_by.endswith(".")
        assert set(entry.kinds) <= set(KINDS)
        assert "True" in entry.when


def test_every_reason_has_a_meaning_and_something_to_do() -> None:
    entries = {entry.name: entry for entry in glossary.reasons()}
    assert set(entries) == set(Reason)
    page = reference.reasons_page()
    for entry in entries.values():
        assert entry.meaning.endswith(".")
        assert entry.to_do.endswith(".")
        assert f"\n### {entry.name}\n" in page


def test_every_phase_has_a_meaning() -> None:
    assert set(glossary.phases()) == set(Phase)


def test_kubectl_explain_has_the_meaning_of_every_condition() -> None:
    for crd in build_crds().values():
        status = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]
        text = status["properties"]["conditions"]["description"]
        for entry in glossary.conditions(crd["spec"]["names"]["kind"]):
            assert f"\n{entry.name}: True when: {entry.when['True']}" in text


def test_every_word_of_the_glossary_is_one_camel_case_word() -> None:
    for word in [*Reason, *Phase, *ConditionType]:
        assert re.fullmatch(r"[A-Z][A-Za-z]+", word)


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.name)
def test_samples_are_what_the_models_accept(sample: Path) -> None:
    for manifest in yaml.safe_load_all(sample.read_text()):
        if model := KINDS.get(manifest["kind"]):
            parsed = model.model_validate(manifest)
            assert parsed.api_version == manifest["apiVersion"]


def test_there_are_samples_of_both_kinds() -> None:
    kinds = {m["kind"] for sample in SAMPLES for m in yaml.safe_load_all(sample.read_text())}
    assert set(KINDS) <= kinds


def test_the_models_have_no_second_place_for_their_documentation() -> None:
    # A description in a docstring below a field would not reach the CRD.
    source = inspect.getsource(inspect.getmodule(FinetuneJob) or FinetuneJob)
    assert not re.search(r"^    \] = .*\n    \"\"\"", source, re.MULTILINE)

"""Names, labels and limits that objects in clusters have already: another spelling would lose or double them."""

import hashlib

import pytest

from finetune_api.training import TrainingConfig
from finetune_operator.errors import StalledError
from finetune_operator.resources import annotations, labels
from finetune_operator.resources.names import adapter_list_name, bounded, deployment_name, training_job_name
from finetune_operator.resources.training_job import build_training_config, encoded_config
from support.objects.operator_objects import UID, a_job


def digest(stem: str) -> str:
    return hashlib.sha256(stem.encode()).hexdigest()[:6]


def test_a_name_that_fits_is_kept() -> None:
    assert bounded("a" * 60, "-xy") == "a" * 60 + "-xy"
    assert training_job_name("tone", UID, 2) == "tone-0a1b2c3d-a2"
    assert deployment_name("tone") == "tone-server"
    assert adapter_list_name("tone") == "tone-adapters"


def test_a_name_that_does_not_fit_is_shortened_to_the_limit() -> None:
    stem = "a" * 61
    assert bounded(stem, "-xy") == f"{'a' * 53}-{digest(stem)}-xy"
    assert len(bounded(stem, "-xy")) == 63
    assert bounded(stem, "-xy") != bounded("a" * 62, "-xy")


@pytest.mark.parametrize("end", ["-", ".", ".-"])
def test_a_shortened_stem_ends_with_a_letter_or_digit(end: str) -> None:
    stem = "a" * (53 - len(end)) + end + "b" * 20
    assert bounded(stem, "-xy") == f"{'a' * (53 - len(end))}-{digest(stem)}-xy"
    capital = "a" * 52 + "X" + "b" * 20
    assert bounded(capital, "-xy") == f"{'a' * 52}X-{digest(capital)}-xy"


def test_selectors_are_those_that_running_operators_use() -> None:
    assert labels.MANAGED_SELECTOR == "app.kubernetes.io/managed-by=finetune-operator"
    assert labels.job_selector("u") == "finetune.dev/job-uid=u"
    assert annotations.ANNOTATION_ADAPTER_LIST == "finetune.dev/adapter-list"


def a_config_of(size: int) -> TrainingConfig:
    """A configuration that is encoded in `size` bytes."""
    config = build_training_config(a_job(dataset={"inline": "x"}), 1)
    missing = size - len(encoded_config(config).encode())
    dataset = config.dataset.model_copy(update={"inline": "x" * (missing + 1)})
    return config.model_copy(update={"dataset": dataset})


def test_a_configuration_may_fill_its_annotation_and_no_more() -> None:
    assert len(encoded_config(a_config_of(200_000))) == 200_000
    with pytest.raises(StalledError) as refused:
        encoded_config(a_config_of(200_001))
    assert refused.value.reason == "SpecInvalid"
    assert "200001 bytes" in str(refused.value)

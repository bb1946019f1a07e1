"""Reading settings and configurations: both doors, and every problem at once."""

import json
from pathlib import Path

import pytest

from finetune_api.contract import ExitCode
from finetune_api.reasons import Reason
from finetune_trainer.config import TrainerSettings, load_config, load_pod_config
from finetune_trainer.errors import TrainingError
from lab.fixtures.training_runs import a_training_config, write_config


def test_what_the_operator_mounts_is_read_back_unchanged(tmp_path: Path) -> None:
    config = a_training_config(Path("/models/base"), Path("/adapters"), evaluation={"inline": '{"text": "a"}'})
    assert load_config(write_config(config, tmp_path / "config.json")) == config


def test_a_person_may_write_yaml(tmp_path: Path) -> None:
    path = tmp_path / "support-tone.yaml"
    path.write_text(
        "model: {path: /models/base}\n"
        "dataset: {path: rows.jsonl}\n"
        "hyperparameters:\n  learningRate: 0.0001\n"
        "output: {directory: out, adapterName: support-tone}\n"
    )
    config = load_config(path)
    assert config.hyperparameters.learning_rate == 0.0001
    assert config.job is None


def test_all_problems_of_a_configuration_are_reported_at_once_by_field(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    document = a_training_config(Path("/models/base"), Path("/adapters")).to_dict()
    del document["model"]["path"]
    document["lora"] = {"rank": 0}
    document["hyperparameters"] = {"learningRat": 1}
    path.write_text(json.dumps(document))
    with pytest.raises(TrainingError) as caught:
        load_config(path)
    assert caught.value.reason is Reason.SPEC_INVALID
    assert caught.value.exit_code is ExitCode.CONFIG_INVALID
    for part in (
        "3 problems",
        "model.path: required, but missing",
        "lora.rank: expected 1 or more, found 0",
        "hyperparameters.learningRat: unknown field; did you mean learningRate?",
    ):
        assert part in caught.value.message


@pytest.mark.parametrize(
    ("content", "expected"),
    [("{", "neither JSON nor YAML"), ("[1]", "contains a list; expected a mapping"), (None, "cannot be read")],
)
def test_a_file_that_is_no_configuration_is_refused(tmp_path: Path, content: str | None, expected: str) -> None:
    path = tmp_path / "config.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(TrainingError, match=expected):
        load_config(path)


def test_model_name_or_path_takes_the_place_of_the_configured_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODEL_NAME_OR_PATH", "org/other")
    path = write_config(a_training_config(Path("/models/base"), Path("/adapters")), tmp_path / "config.json")
    config = load_config(path, model_name_or_path=TrainerSettings().model_name_or_path)
    assert config.model.path == "org/other"
    assert config.model.source is None


def test_an_empty_environment_variable_means_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_BROKER_URL", "")
    assert TrainerSettings().broker_url is None


def test_a_pod_without_a_job_is_told_to_run_by_hand(tmp_path: Path) -> None:
    path = write_config(a_training_config(Path("/m"), Path("/a"), job=None), tmp_path / "config.json")
    with pytest.raises(TrainingError, match="job is missing"):
        load_pod_config(path)


@pytest.mark.parametrize(
    "uri",
    [
        "https://me:hunter2@host/x.jsonl",
        "https://host/x.jsonl?sig=hunter2",
        "http://host/hunter2.jsonl",
        "pvc://a/hunter2",
    ],
)
def test_a_source_with_a_credential_or_a_scheme_unknown_is_refused_and_not_shown(tmp_path: Path, uri: str) -> None:
    document = a_training_config(Path("/m"), Path("/out")).to_dict() | {"dataset": {"path": uri}}
    (tmp_path / "config.json").write_text(json.dumps(document))
    with pytest.raises(TrainingError, match="path is neither a file nor hf://ORG/NAME") as caught:
        load_config(tmp_path / "config.json")
    assert "hunter2" not in caught.value.message

"""Settings, models from file, environment and command line, and how many CPUs there are."""

import json
from pathlib import Path

import pytest

from finetune_inference.__main__ import configuration
from finetune_inference.config import (
    Settings,
    load_serving_config,
)
from finetune_inference.service.lifecycle import adapter_limits
from support.server.stepped_engine import SteppedEngine

DOCUMENT = {"model": {"name": "base", "path": "/models/base"}, "adapters": [{"name": "a", "path": "/adapters/a"}]}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(DOCUMENT))
    return path


def test_the_mounted_configuration_says_what_is_served(file: Path) -> None:
    serving = load_serving_config(Settings(config_path=file))
    assert serving.to_dict() == DOCUMENT | {"precision": "auto"}


def test_model_name_or_path_replaces_the_models_path_and_needs_no_file(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODEL_NAME_OR_PATH", "/elsewhere/llama")
    serving = load_serving_config(Settings(config_path=file))
    assert (serving.model.name, serving.model.path) == ("base", "/elsewhere/llama")
    assert [adapter.name for adapter in serving.adapters] == ["a"]
    alone = load_serving_config(Settings(config_path=tmp_path / "none.json"))
    assert (alone.model.name, alone.model.path, alone.adapters) == ("llama", "/elsewhere/llama", [])


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_SERVER_MAX_WAITING", "3")
    assert Settings().max_waiting == 3
    monkeypatch.setenv("FINETUNE_SERVER_MAX_WAITING", "0")
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        Settings()


def test_the_command_line_serves_without_any_file() -> None:
    adapters = ["--adapter", "a=/x/a", "--adapter", "b=/x/b=c"]
    settings, serving = configuration(
        ["--model", "/m/smollm2", *adapters, "--port", "9", "--host", "127.0.0.1", "--engine", "vllm"]
    )
    assert (settings.port, settings.host, settings.engine) == (9, "127.0.0.1", "vllm")
    assert (serving.model.name, serving.model.path) == ("smollm2", "/m/smollm2")
    assert [(a.name, a.path) for a in serving.adapters] == [("a", "/x/a"), ("b", "/x/b=c")]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--adapter", "a=/x"], "--adapter and --merge need --model"),
        (["--model", "m", "--adapter", "/x"], "use NAME=PATH"),
        (["--model", "m", "--max-model-length", "1"], "greater than or equal to 16"),
        (["--model", "m", "--port", "99999"], "less than or equal to 65535"),
        (["--config", "/nonexistent"], "/nonexistent does not exist; name a base model with --model"),
    ],
)
def test_a_configuration_that_cannot_be_used_says_why(arguments: list[str], words: str) -> None:
    with pytest.raises((OSError, ValueError), match=words):
        configuration(arguments)


def test_room_for_adapters_is_a_share_of_what_the_engine_has_left() -> None:
    def room(spare: int, **settings: int) -> int:
        engine = SteppedEngine()
        engine.spare_memory = spare
        return adapter_limits(Settings(**settings), engine).memory_bytes

    assert room(8 << 30) == 1 << 30
    assert room(0) == 64 << 20
    assert room(8 << 30, adapter_memory_bytes=5) == 5

from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from finetune_api.serving import ServedAdapter, ServedModel, ServingConfig
from finetune_inference.config import Settings
from finetune_inference.inference import InferenceService
from lab.fixtures.tiny_adapter import make_tiny_adapter
from lab.fixtures.tiny_model import make_tiny_model
from support.server.running_inference import Running, running
from support.server.scripted_server import Scripted, scripted


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `base`, and the adapters `formal` and `rude`."""
    folder = tmp_path_factory.mktemp("models")
    base = make_tiny_model(folder / "base")
    make_tiny_adapter(folder / "formal", base, seed=1)
    make_tiny_adapter(folder / "rude", base, seed=2, target_modules="all-linear", r=8)
    return folder


@pytest.fixture(scope="session")
def config(models: Path) -> ServingConfig:
    adapters = [ServedAdapter(name=name, path=str(models / name)) for name in ("formal", "rude")]
    return ServingConfig(model=ServedModel(name="base", path=str(models / "base")), adapters=adapters)


@pytest.fixture(scope="session")
def settings() -> Settings:
    # One thread: the model is tiny, and the tests share the machine.
    return Settings(threads=1, drain_delay_seconds=0)


@pytest.fixture(scope="session")
def server(config: ServingConfig, settings: Settings) -> Iterator[Running]:
    with running(InferenceService(config, settings)) as server:
        yield server


@pytest.fixture
def client(server: Running) -> Iterator[openai.OpenAI]:
    with server.openai as client:
        yield client


@pytest.fixture
def http(server: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scripted]:
    """A server whose engine answers what the test says, in Qwen's template."""
    with scripted(tmp_path_factory.mktemp("qwen"), "qwen3") as server:
        yield server

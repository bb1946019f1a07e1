"""The examples do what they say."""

import importlib.util
import time
from pathlib import Path
from types import ModuleType

import httpx
import pytest
from fastapi.testclient import TestClient

from finetune_api.serving import ServingConfig
from finetune_inference.config import Settings
from finetune_inference.inference import InferenceService
from support.server.running_inference import Running, running

pytestmark = pytest.mark.model

EXAMPLES = Path(__file__).resolve().parents[3] / "inference_image" / "examples"


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_an_application_of_ones_own_answers_with_both_models(models: Path) -> None:
    app = example("application").create_app(str(models / "base"), str(models / "rude"))
    with TestClient(app) as client:
        end = time.monotonic() + 120
        while not client.get("/healthz").json()["ready"]:
            assert time.monotonic() < end, "the model was never loaded"
            time.sleep(0.05)
        answer = client.post("/sort", json="Where is my order?")
        assert answer.status_code == 200
        assert answer.json()["tuned"] != answer.json()["base"]
        assert client.post("/sort", json="x" * 1900).status_code == 413


def test_the_client_streams_and_gets_a_document(server: Running, capsys: pytest.CaptureFixture[str]) -> None:
    client = example("client")
    client.main(f"{server.url}/v1", "rude", "The app crashes on the map.")
    *_, last = capsys.readouterr().out.splitlines()
    assert last.startswith("team=")


def test_the_chat_page_is_served_where_the_settings_say_so_and_nothing_foreign_runs_on_it(
    config: ServingConfig, http: httpx.Client
) -> None:
    assert http.get("/chat").status_code == 404
    with running(InferenceService(config, Settings(threads=1, chat_page=True)), wait=False) as server:
        page = httpx.get(f"{server.url}/chat")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy
    # All of it is in the one document, and the policy would stop a handler or a style that is not in those two elements.
    for word in ("http://", "https://", "src=", "<link", "onclick", "style=", "innerHTML"):
        assert word not in page.text

"""From the training run to the operator: an adapter that is served with another chat template is not verified.

Real parts throughout: the trainer takes the fingerprint, the server serves the folder, the operator probes it over HTTP.
"""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from finetune_api.fingerprint import Fingerprint
from finetune_api.serving import ServedAdapter, ServedModel, ServingConfig
from finetune_inference.config import Settings
from finetune_inference.inference import InferenceService
from finetune_operator.io.probe import probe_adapter
from finetune_trainer.model.fingerprint import PROMPTS, take_fingerprint
from lab.fixtures.tiny_adapter import commit, copied
from support.server.running_inference import running

pytestmark = pytest.mark.model


def fingerprint_of(models: Path, template: str | None = None) -> Fingerprint:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(models / "base")
    tokenizer.chat_template = template or tokenizer.chat_template
    base = AutoModelForCausalLM.from_pretrained(models / "base")
    return take_fingerprint(PeftModel.from_pretrained(base, models / "rude"), tokenizer, "float32")


def with_template(models: Path, folder: Path, change: tuple[str, str]) -> Path:
    """A copy of the adapter whose template is another one; its manifest vouches for it."""
    copied(models / "rude", folder)
    path = folder / "chat_template.jinja"
    changed = path.read_text().replace(*change)
    assert changed != path.read_text()
    path.write_text(changed)
    commit(folder)
    return folder


def test_the_template_of_the_training_run_is_verified_and_any_other_is_not(models: Path, tmp_path: Path) -> None:
    fingerprint = fingerprint_of(models)
    assert fingerprint.chat == PROMPTS[0]
    changed = with_template(models, tmp_path / "changed", ("<|im_end|>", ""))
    folders = {"same": models / "rude", "changed": changed}
    config = ServingConfig(
        model=ServedModel(name="base", path=str(models / "base")),
        adapters=[ServedAdapter(name=name, path=str(path)) for name, path in folders.items()],
    )
    with running(InferenceService(config, Settings(threads=1))) as server:
        results = {name: asyncio.run(probe_adapter(server.url, name, "base", fingerprint, 60)) for name in folders}
    assert (results["same"].verified, results["same"].reason) == ("True", "FingerprintMatched")
    assert (results["changed"].verified, results["changed"].reason) == ("False", "ChatTemplateDiffers")
    assert "instead of token" in results["changed"].message


@pytest.mark.parametrize(
    "template",
    [
        # The date is another one by the time that it is probed.
        "{{ strftime_now('%d %b %Y') }}{% for message in messages %}{{ message['content'] }}{% endfor %}",
        # Longer than a probe may be, so that the bare prompt was scored.
        "{{ 'preamble ' * 200 }}{% for message in messages %}{{ message['content'] }}{% endfor %}",
    ],
)
def test_a_template_that_cannot_be_compared_is_not(models: Path, template: str) -> None:
    assert fingerprint_of(models, template).chat is None


def test_tokenize_shows_what_a_request_would_read(http: httpx.Client) -> None:
    messages = [{"role": "user", "content": "How do I reset my password?"}]
    chat: dict[str, Any] = http.post("/tokenize", json={"model": "rude", "messages": messages}).json()
    answer = http.post("/v1/chat/completions", json={"model": "rude", "messages": messages, "max_tokens": 1}).json()
    assert chat["count"] == len(chat["tokens"]) == answer["usage"]["prompt_tokens"]
    text = http.post("/tokenize", json={"model": "base", "prompt": "Paris"}).json()
    assert (text["max_model_len"], text["count"]) == (512, len(text["tokens"]))
    assert http.post("/tokenize", json={"model": "base"}).status_code == 400
    assert http.post("/tokenize", json={"model": "other", "prompt": "a"}).json()["error"]["code"] == "model_not_found"

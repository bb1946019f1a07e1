"""From the job to the answer: template, variables, system prompt and end tokens of an adapter are those that it was trained with."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from finetune_api.artifacts import MANIFEST_FILE, Manifest
from finetune_api.fingerprint import Fingerprint
from finetune_api.serving import ServedAdapter, ServedModel, ServingConfig
from finetune_inference.config import Settings
from finetune_inference.inference import InferenceService
from finetune_operator.io.probe import probe_adapter
from finetune_trainer.training import FinetuningPipeline
from lab.fixtures.tiny_adapter import copied
from lab.fixtures.tiny_model import as_jsonl, chat_rows, make_tiny_model
from lab.fixtures.training_runs import a_training_config
from support.server.running_inference import running

pytestmark = pytest.mark.model

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if not loud %}<quiet>\n{% endif %}{% endif %}"
)
"""A template whose generation prompt has a variable, which answers do not repeat."""
CHAT = {"template": TEMPLATE, "templateKwargs": {"loud": True}, "systemPrompt": "Be brief."}
QUESTION = {"role": "user", "content": "How do I reset my password?"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base model whose answers end with a token that its chat template never writes, and adapters for it."""
    root = tmp_path_factory.mktemp("chats")
    base = make_tiny_model(root / "base")
    for name in ("config.json", "generation_config.json"):
        document = json.loads((base / name).read_text())
        (base / name).write_text(json.dumps({**document, "eos_token_id": 0}))
    tokenizer = json.loads((base / "tokenizer_config.json").read_text())
    (base / "tokenizer_config.json").write_text(json.dumps({**tokenizer, "eos_token": "<|endoftext|>"}))
    folders = {"base": base, "plain": train(base, root / "plain"), "own": train(base, root / "own", chat=CHAT)}
    # What an earlier release wrote: the same folder without the record of chats.
    folders["earlier"] = copied(folders["plain"], root / "earlier")
    manifest = json.loads((folders["earlier"] / MANIFEST_FILE).read_text())
    del manifest["chat"]
    (folders["earlier"] / MANIFEST_FILE).write_text(json.dumps(manifest))
    return folders


def train(base: Path, output: Path, **changes: Any) -> Path:
    config = a_training_config(
        base,
        output,
        dataset={"inline": as_jsonl(chat_rows(4))},
        hyperparameters={"batchSize": 4, "learningRate": 0.02, "maxSteps": 40},
        **changes,
    )
    outcome = FinetuningPipeline(config).run()
    assert outcome.adapter
    return output / outcome.adapter.path


@pytest.fixture(scope="module")
def url(folders: dict[str, Path]) -> Iterator[str]:
    config = ServingConfig(
        model=ServedModel(name="base", path=str(folders["base"])),
        adapters=[ServedAdapter(name=name, path=str(path)) for name, path in folders.items() if name != "base"],
    )
    with running(InferenceService(config, Settings(threads=1))) as server:
        yield server.url


def post(url: str, path: str, model: str, **body: Any) -> dict[str, Any]:
    answer: dict[str, Any] = httpx.post(f"{url}{path}", json={"model": model, **body}, timeout=60).json()
    return answer


def test_an_answer_ends_with_the_token_that_it_learnt_to_end_with(folders: dict[str, Path], url: str) -> None:
    manifest = Manifest.model_validate_json((folders["plain"] / MANIFEST_FILE).read_text())
    assert manifest.chat
    assert manifest.chat.end_tokens == [2]
    choices = {
        name: post(url, "/v1/chat/completions", name, messages=[QUESTION], max_tokens=60, temperature=0)["choices"][0]
        for name in ("plain", "earlier")
    }
    expected = chat_rows(4)[1]["messages"][1]["content"]
    assert (choices["plain"]["message"]["content"], choices["plain"]["finish_reason"]) == (expected, "stop")
    assert choices["earlier"]["message"]["content"].startswith(expected)
    assert choices["earlier"]["finish_reason"] == "length"


def test_template_variables_and_system_prompt_are_recorded_served_and_verified(
    folders: dict[str, Path], url: str
) -> None:
    manifest = Manifest.model_validate_json((folders["own"] / MANIFEST_FILE).read_text())
    assert manifest.chat
    assert (manifest.chat.template_kwargs, manifest.chat.system_prompt) == ({"loud": True}, "Be brief.")
    assert (folders["own"] / "chat_template.jinja").read_text() == TEMPLATE
    rendered = post(url, "/tokenize", "own", messages=[QUESTION])["tokens"]
    fingerprint = Fingerprint.model_validate_json((folders["own"] / "fingerprint.json").read_text())
    first = fingerprint.probes[0]
    assert fingerprint.chat
    own = post(url, "/tokenize", "own", messages=[{"role": "user", "content": fingerprint.chat}])["tokens"]
    assert own == first.token_ids[: first.prompt_tokens]
    text = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHow do I reset my password?<|im_end|>\n"
    raw = post(url, "/tokenize", "base", prompt=text + "<|im_start|>assistant\n")["tokens"]
    assert rendered == raw
    result = asyncio.run(probe_adapter(url, "own", "base", fingerprint, 60))
    assert (result.verified, result.reason) == ("True", "FingerprintMatched")


def test_a_chat_with_a_system_message_keeps_it(url: str) -> None:
    asked = post(url, "/tokenize", "own", messages=[{"role": "system", "content": "Shout."}, QUESTION])["tokens"]
    plain = post(url, "/tokenize", "plain", messages=[{"role": "system", "content": "Shout."}, QUESTION])["tokens"]
    assert asked == plain


@pytest.mark.parametrize(
    "change", [{"systemPrompt": "Be kind."}, {"templateKwargs": {"loud": False}}, {"templateKwargs": {"tools": []}}]
)
def test_an_adapter_whose_record_was_changed_is_not_verified(
    folders: dict[str, Path], tmp_path: Path, change: dict[str, Any]
) -> None:
    changed = copied(folders["own"], tmp_path / "changed")
    manifest = json.loads((changed / MANIFEST_FILE).read_text())
    manifest["chat"] |= change
    (changed / MANIFEST_FILE).write_text(json.dumps(manifest))
    config = ServingConfig(
        model=ServedModel(name="base", path=str(folders["base"])),
        adapters=[ServedAdapter(name="own", path=str(changed))],
    )
    fingerprint = Fingerprint.model_validate_json((changed / "fingerprint.json").read_text())
    with running(InferenceService(config, Settings(threads=1))) as server:
        result = asyncio.run(probe_adapter(server.url, "own", "base", fingerprint, 60))
        refused = post(server.url, "/v1/chat/completions", "own", messages=[QUESTION], max_tokens=1)
    assert result.verified != "True"
    if "tools" in change.get("templateKwargs", {}):
        assert "cannot be a variable of a template" in refused["error"]["message"]
    else:
        assert result.reason == "ChatTemplateDiffers"


def test_an_end_token_that_the_model_does_not_have_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    changed = copied(folders["plain"], tmp_path / "changed")
    manifest = json.loads((changed / MANIFEST_FILE).read_text())
    manifest["chat"]["endTokens"] = [100_000]
    (changed / MANIFEST_FILE).write_text(json.dumps(manifest))
    config = ServingConfig(
        model=ServedModel(name="base", path=str(folders["base"])),
        adapters=[ServedAdapter(name="own", path=str(changed))],
    )
    service = InferenceService(config, Settings(threads=1))
    try:
        service.load()
        assert "has the end token 100000" in service.refused["own"]
    finally:
        service.close()

"""A base model whose checkpoint is quantized: served as it is, with adapters beside it."""

import importlib.util
import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import openai
import pytest

from finetune_inference.config import Settings, standalone_config
from finetune_inference.engine.interface import ModelLoadError
from finetune_inference.inference import InferenceService
from finetune_model.model_files import quantization_of
from lab.fixtures.tiny_adapter import make_tiny_adapter
from support.server.running_inference import running

pytestmark = pytest.mark.model

needs_package = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None,
    reason="bitsandbytes is missing; `uv sync --group qlora` installs it",
)
IDS = [(7 * i + 3) % 300 + 5 for i in range(40)]


@pytest.fixture(scope="module")
def quantized(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, two adapters of it, and its checkpoint in four bits: layers of the tiny model are too narrow for these."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("quantized")
    document = json.loads((models / "base" / "config.json").read_text())
    wide = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2}
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**{**document, **wide, "initializer_range": 0.1})).save_pretrained(folder / "plain")
    tokenizer = AutoTokenizer.from_pretrained(models / "base")
    tokenizer.save_pretrained(folder / "plain")
    make_tiny_adapter(folder / "tuned", folder / "plain", seed=1)
    make_tiny_adapter(folder / "dora", folder / "plain", seed=1, use_dora=True)
    four_bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    loaded = AutoModelForCausalLM.from_pretrained(folder / "plain", quantization_config=four_bits, dtype=torch.float32)
    loaded.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    return folder


@pytest.fixture(scope="module")
def client(quantized: Path) -> Iterator[openai.OpenAI]:
    adapters = {name: str(quantized / name) for name in ("tuned", "dora")}
    config = standalone_config(str(quantized / "base"), adapters, name="base")
    with (
        running(InferenceService(config, Settings(threads=1, drain_delay_seconds=0))) as server,
        server.openai as client,
    ):
        yield client


def peft_scores(folder: Path, adapter: str | None) -> list[float]:
    """As peft computes them. A new model each time: bitsandbytes packs it for good when it is first asked."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
    if adapter:
        model = PeftModel.from_pretrained(model, folder / adapter)
    with torch.inference_mode():
        logits = model.eval()(input_ids=torch.tensor([IDS])).logits[0, :-1].log_softmax(-1)
    return [float(row[token]) for row, token in zip(logits, IDS[1:], strict=True)]


def scores(client: openai.OpenAI, model: str) -> list[float]:
    answer = client.completions.create(model=model, prompt=IDS, max_tokens=0, echo=True, logprobs=0)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.token_logprobs is not None
    return [value for value in logprobs.token_logprobs if value is not None]


def distance(one: list[float], other: list[float]) -> float:
    """Nats per token."""
    return sum(abs(a - b) for a, b in zip(one, other, strict=True)) / len(one)


@needs_package
def test_a_quantized_checkpoint_is_served_with_adapters_beside_it(client: openai.OpenAI, quantized: Path) -> None:
    tuned, base = peft_scores(quantized, "tuned"), peft_scores(quantized, None)
    effect = distance(tuned, base)
    assert effect > 0.2
    assert distance(scores(client, "tuned"), tuned) < effect / 20
    assert distance(scores(client, "base"), base) < effect / 20


@needs_package
def test_its_sequences_share_a_pass(quantized: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        service = InferenceService(standalone_config(str(quantized / "base")), Settings(threads=1))
        service.load()
        service.close()
    assert "one sequence at a time" not in caplog.text


@needs_package
def test_dora_is_refused_with_the_reason(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match=r"DoRA, which needs the norms .* quantized \(bitsandbytes\)"):
        client.models.retrieve("dora")


@needs_package
def test_nothing_is_merged_into_it(quantized: Path) -> None:
    config = standalone_config(str(quantized / "base"), {"tuned": str(quantized / "tuned")}, merge=True)
    with pytest.raises(ModelLoadError, match=r"quantized \(bitsandbytes\) .* set mergeAdapter to false"):
        InferenceService(config, Settings(threads=1)).load()


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed here")
def test_a_missing_package_is_named(models: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(models / "base", tmp_path / "base")
    document = json.loads((folder / "config.json").read_text())
    document["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (folder / "config.json").write_text(json.dumps(document))
    with pytest.raises(ModelLoadError, match="bitsandbytes"):
        InferenceService(standalone_config(str(folder)), Settings(threads=1)).load()


@pytest.mark.parametrize(
    ("config", "method"),
    [
        ({}, None),
        ({"quantization_config": None}, None),
        ({"quantization_config": {"quant_method": "awq"}}, "awq"),
        ({"quantization_config": SimpleNamespace(quant_method="fp8")}, "fp8"),
    ],
)
def test_what_a_checkpoint_is_quantized_with(config: dict[str, Any], method: str | None) -> None:
    assert quantization_of(SimpleNamespace(**config)) == method

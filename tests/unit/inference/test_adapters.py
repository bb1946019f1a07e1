"""Broken adapters: each is refused with its own reason, and the base and the other adapters are served."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from finetune_api.artifacts import MANIFEST_FILE
from finetune_api.serving import ServedAdapter, ServedModel, ServingConfig
from finetune_inference.adapters import registry
from finetune_inference.adapters.verification import AdapterRefusedError, Limits, verify
from finetune_inference.config import Settings
from finetune_inference.engine.interface import VerifiedAdapter
from finetune_inference.inference import InferenceService
from finetune_model.base_digest import BaseIdentity
from finetune_model.servable import NotServableError, lora_arguments
from lab.fixtures.tiny_adapter import commit, copied, make_tiny_adapter
from lab.fixtures.tiny_model import make_tiny_model
from support.server.running_inference import running
from support.server.stepped_engine import SteppedEngine

pytestmark = [pytest.mark.model, pytest.mark.engine]

PLAIN: dict[str, Any] = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "bias": "none"}


def edit_tensors(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    from safetensors.torch import load_file, save_file

    path = folder / "adapter_model.safetensors"
    save_file(change(load_file(path)), path)
    commit(folder)


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    commit(folder)


def renamed(folder: Path) -> None:
    edit_tensors(folder, lambda t: {name.replace("lora_A", "lora_C"): tensor for name, tensor in t.items()})


def one_missing(folder: Path) -> None:
    edit_tensors(folder, lambda t: dict(list(t.items())[1:]))


def not_a_number(folder: Path) -> None:
    edit_tensors(folder, lambda t: {name: tensor * float("nan") for name, tensor in t.items()})


def whole_numbers(folder: Path) -> None:
    edit_tensors(folder, lambda t: {name: tensor.long() for name, tensor in t.items()})


def zeroed(folder: Path) -> None:
    edit_tensors(folder, lambda t: {name: tensor * 0 for name, tensor in t.items()})


def torn(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def flipped_bit(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def uncommitted(folder: Path) -> None:
    (folder / MANIFEST_FILE).unlink()


def pickled(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    commit(folder)


def not_safetensors(folder: Path) -> None:
    (folder / "adapter_model.safetensors").write_bytes(b"\x80\x04pickle")
    commit(folder)


def slipped_in(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    content = path.read_text()
    path.unlink()
    commit(folder)
    path.write_text(content)


def nested(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("[" * 100_000)
    commit(folder)


def a_checkpoint(folder: Path) -> None:
    commit(folder, kind="checkpoint")


def broken_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")
    commit(folder)


def another_embedding(folder: Path) -> None:
    """As after a run that extended the vocabulary, or trained the embedding itself."""
    import torch

    name = "base_model.model.model.embed_tokens.weight"
    edit_tensors(folder, lambda t: {**t, name: torch.zeros(384, 32)})


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "renamed-keys": (renamed, "lacks base_model.model.model.layers.0.mlp.down_proj.lora_A.weight"),
    "missing-key": (
        one_missing,
        "lacks base_model.model.model.layers.0.mlp.down_proj.lora_A.weight; the adapter was trained on another model",
    ),
    "another-embedding": (another_embedding, "has a copy of model.embed_tokens that is not the base model's"),
    "not-a-number": (not_a_number, "has values that are not finite floats in base_model.model"),
    "whole-numbers": (whole_numbers, "has values that are not finite floats in base_model.model"),
    "nested-config": (nested, "adapter_config.json cannot be read: maximum recursion depth exceeded"),
    "torn": (torn, "its manifest says"),
    "flipped-bit": (flipped_bit, "has sha256"),
    "uncommitted": (uncommitted, "is not a committed folder: it has no manifest.json; if another program"),
    "pickled": (pickled, "has no adapter_model.safetensors but adapter_model.bin; pickle files run code"),
    "not-safetensors": (not_safetensors, "is not a safetensors file"),
    "slipped-in": (slipped_in, "has tokenizer_config.json, which its manifest does not list"),
    "a-checkpoint": (a_checkpoint, "holds a checkpoint, not an adapter"),
    "broken-tokenizer": (broken_tokenizer, "has no usable tokenizer"),
    "auto-mapping": (
        lambda f: edit_config(f, auto_mapping={"parent_library": "os", "base_model_class": "system"}),
        "adapter_config.json sets auto_mapping; only plain LoRA is supported",
    ),
    "megatron": (lambda f: edit_config(f, megatron_config={"a": 1}, megatron_core="os"), "sets megatron_config"),
    "other-peft-type": (lambda f: edit_config(f, peft_type="IA3"), "has peft_type 'IA3'; only LORA is supported"),
    "unknown-key": (lambda f: edit_config(f, from_the_future=1), "sets from_the_future"),
    "bias": (lambda f: edit_config(f, bias="all"), "has bias 'all', which would change the base"),
    "pissa": (lambda f: edit_config(f, init_lora_weights="pissa"), "has init_lora_weights 'pissa'"),
    "other-rank": (lambda f: edit_config(f, r=8), "with shape (4, 32); this base model needs (8, 32)"),
    "alpha-no-number": (
        lambda f: edit_config(f, lora_alpha=float("nan")),
        "by a factor that is not finite as torch.float32",
    ),
    "endless-alpha": (lambda f: edit_config(f, lora_alpha=1e40), "by a factor that is not finite as torch.float32"),
    "endless-alpha-of-one": (
        lambda f: edit_config(f, alpha_pattern={"layers.0.self_attn.q_proj": 1e40}),
        "scales model.layers.0.self_attn.q_proj by a factor that is not finite",
    ),
    "absurd-rank": (lambda f: edit_config(f, r=-1), "cannot be applied to this base model"),
    "other-modules": (lambda f: edit_config(f, target_modules=["c_attn"]), "cannot be applied to this base model"),
    "endless-pattern": (lambda f: edit_config(f, target_modules="(a+)+$"), "has target_modules '(a+)+$'"),
    "config-is-a-list": (
        lambda f: ((f / "adapter_config.json").write_text("[]"), commit(f), None)[2],
        "is not a JSON object",
    ),
}


@pytest.fixture(scope="module")
def service(models: Path, settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[InferenceService]:
    """A server with two good adapters in between all the broken ones."""
    folder = tmp_path_factory.mktemp("broken")
    adapters = [ServedAdapter(name="formal", path=str(models / "formal"))]
    for name, (damage, _) in DAMAGES.items():
        damage(copied(models / "formal", folder / name))
        adapters.append(ServedAdapter(name=name, path=str(folder / name)))
    adapters += [
        ServedAdapter(name="other-digest", path=str(models / "formal"), digest="sha256:" + "0" * 64),
        ServedAdapter(name="other-base", path=_adapter_for_another_base(folder)),
        ServedAdapter(name="absent", path=str(folder / "absent")),
        ServedAdapter(name="formal", path=str(models / "rude")),
        ServedAdapter(name="base", path=str(models / "rude")),
        ServedAdapter(name="rude.2", path=str(models / "rude")),
    ]
    zeroed(copied(models / "formal", folder / "zeroed"))
    adapters.append(ServedAdapter(name="zeroed", path=str(folder / "zeroed")))
    service = InferenceService(
        ServingConfig(model=ServedModel(name="base", path=str(models / "base")), adapters=adapters), settings
    )
    service.load()
    yield service
    service.close()


def _adapter_for_another_base(folder: Path) -> str:
    """The same names of modules, but other widths."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    tiny = make_tiny_model(folder / "tiny")
    config = AutoConfig.from_pretrained(tiny)
    config.hidden_size, config.intermediate_size = 48, 96
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "wider")
    AutoTokenizer.from_pretrained(tiny).save_pretrained(folder / "wider")
    make_tiny_adapter(folder / "other-base", folder / "wider", seed=3)
    return str(folder / "other-base")


REASONS = {name: reason for name, (_, reason) in DAMAGES.items()} | {
    "other-digest": "sha256:" + "0" * 64,
    "other-base": "this base model needs",
    "absent": "is not a committed folder",
    "base": "the name 'base' is already taken",
}


@pytest.mark.parametrize("name", REASONS)
def test_a_broken_adapter_is_refused_with_its_reason(service: InferenceService, name: str) -> None:
    assert REASONS[name] in service.refused[name]


def test_what_is_not_broken_is_served(service: InferenceService) -> None:
    assert [model.name for model in service.models()] == ["base", "formal", "rude.2", "zeroed"]
    assert set(service.refused) == {*REASONS, "formal"}


def test_broken_neighbors_change_no_answer(service: InferenceService, server: Any) -> None:
    for broken, alone in (("base", "base"), ("formal", "formal"), ("rude.2", "rude")):
        text = service.process_text("Where is my order?", model=broken, max_tokens=30).text
        assert text == server.service.process_text("Where is my order?", model=alone, max_tokens=30).text


def test_zeroed_weights_load_and_answer_like_the_base(service: InferenceService) -> None:
    """Only a replayed fingerprint can tell: nothing is wrong with the folder."""
    texts = [service.process_text("Where is my order?", model=m, max_tokens=30).text for m in ("zeroed", "base")]
    assert texts[0] == texts[1]


def test_a_request_for_a_refused_adapter_is_told_why(models: Path, settings: Settings, tmp_path: Path) -> None:
    pickled(copied(models / "formal", tmp_path / "bad"))
    config = ServingConfig(
        model=ServedModel(name="base", path=str(models / "base")),
        adapters=[ServedAdapter(name="bad", path=str(tmp_path / "bad"))],
    )
    with running(InferenceService(config, settings)) as server, server.openai as client:
        assert [model.id for model in client.models.list()] == ["base"]
        with pytest.raises(openai.NotFoundError, match="pickle files run code") as caught:
            client.completions.create(model="bad", prompt="hi")
        assert caught.value.code == "model_not_found"
        with pytest.raises(openai.NotFoundError, match="'bad' is not served"):
            client.models.retrieve("bad")
        assert client.completions.create(model="base", prompt="hi", max_tokens=1).usage


def test_an_adapter_that_fails_in_a_way_nobody_foresaw_is_refused_alone(
    models: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def surprising(served: ServedAdapter, limits: Limits, base: BaseIdentity | None) -> VerifiedAdapter:
        if served.name == "odd":
            raise KeyError("surprise")
        return verify(served, limits, base)

    monkeypatch.setattr(registry, "verify", surprising)
    adapters = [ServedAdapter(name=name, path=str(models / "formal")) for name in ("odd", "formal")]
    config = ServingConfig(model=ServedModel(name="base", path=str(models / "base")), adapters=adapters)
    engine = SteppedEngine()
    engine.allow(1)
    service = InferenceService(config, make_engine=lambda *_: engine)
    service.load()
    assert [model.name for model in service.models()] == ["base", "formal"]
    assert service.refused == {"odd": "it cannot be loaded: KeyError: 'surprise'"}
    assert "Traceback" in caplog.text
    service.close()


def test_a_file_that_changes_later_changes_no_loaded_weights(models: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    from finetune_inference.backends.common.lora_loader import LoraLoader

    folder = copied(models / "formal", tmp_path / "formal")
    adapter = verify(ServedAdapter(name="formal", path=str(folder)), Limits(64, 1 << 30))
    loader = LoraLoader(AutoModelForCausalLM.from_pretrained(models / "base"))
    loaded = loader.load(adapter)
    before = {path: delta.b.clone() for path, delta in loaded.deltas.items()}
    with adapter.weights.open("r+b") as file:
        file.write(b"\0" * adapter.weights.stat().st_size)
    with pytest.raises(AdapterRefusedError, match="changed while it was loaded"):
        loader.load(adapter)
    adapter.weights.write_bytes(b"")
    assert all(delta.b.equal(before[path]) for path, delta in loaded.deltas.items())


def test_an_adapter_for_a_group_of_experts_is_refused(models: Path, tmp_path: Path) -> None:
    """peft wraps the group as one module, whose rows are not those of the batch: it would fail in the engine, for everybody."""
    from transformers import AutoTokenizer, Qwen3MoeConfig, Qwen3MoeForCausalLM

    from finetune_inference.backends.common.lora_loader import LoraLoader

    sizes = {"hidden_size": 32, "intermediate_size": 64, "moe_intermediate_size": 16, "head_dim": 8}
    counts = {"num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2, "num_experts": 4}
    base = Qwen3MoeForCausalLM(Qwen3MoeConfig(vocab_size=384, **sizes, **counts))
    base.save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(models / "base").save_pretrained(tmp_path / "base")
    folder = tmp_path / "experts"
    make_tiny_adapter(folder, tmp_path / "base", seed=1, target_modules=["down_proj"])
    edit_config(folder, target_modules=["down_proj"], target_parameters=None)
    adapter = verify(ServedAdapter(name="experts", path=str(folder)), Limits(64, 1 << 30))
    with pytest.raises(AdapterRefusedError, match=r"mlp\.experts; only linear layers and embeddings"):
        LoraLoader(base).load(adapter)


def test_weights_must_be_finite_in_the_type_that_the_base_computes_in(models: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from finetune_inference.backends.common.lora_loader import LoraLoader

    folder = copied(models / "formal", tmp_path / "large")
    edit_tensors(folder, lambda t: {name: tensor.float() * 0 + 1e6 for name, tensor in t.items()})
    adapter = verify(ServedAdapter(name="large", path=str(folder)), Limits(64, 1 << 30))
    base = AutoModelForCausalLM.from_pretrained(models / "base", dtype=torch.float32)
    assert LoraLoader(base).load(adapter).size_bytes
    with pytest.raises(AdapterRefusedError, match=r"not finite as torch\.float16"):
        LoraLoader(base.half()).load(adapter)


@pytest.mark.parametrize(
    "changes",
    [
        {"layer_replication": [[0, 4]]},
        {"target_parameters": ["mlp.experts"]},
        {"trainable_token_indices": [1]},
        {"alora_invocation_tokens": [1]},
        {"loftq_config": {"loftq_bits": 4}},
        {"arrow_config": {"top_k": 1}},
        {"rank_pattern": {"(x+)+y": 4}},
        {"modules_to_save": "lm_head|.*"},
        {"layers_pattern": [1]},
        {"target_modules": 5},
        {"peft_type": None},
    ],
)
def test_a_configuration_that_asks_for_more_than_plain_lora_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(NotServableError):
        lora_arguments(PLAIN | changes)


def test_everything_that_peft_writes_for_plain_lora_is_accepted() -> None:
    from peft import LoraConfig

    config = LoraConfig(
        task_type="CAUSAL_LM", use_dora=True, use_rslora=True, target_modules="all-linear", rank_pattern={"q_proj": 2}
    )
    written = json.loads(json.dumps(config.to_dict(), default=str))
    arguments = lora_arguments(written)
    assert arguments["use_dora"] and arguments["use_rslora"]
    assert arguments["rank_pattern"] == {"q_proj": 2}
    LoraConfig(**arguments)

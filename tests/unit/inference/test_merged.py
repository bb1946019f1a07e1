"""An adapter as a part of the weights: the same answers, and nothing else is served."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from finetune_api.fingerprint import Fingerprint, Observation, Probe, Verdict, judge
from finetune_api.serving import ServedAdapter, ServedModel, ServingConfig
from finetune_inference.config import Settings
from finetune_inference.engine.interface import ModelLoadError
from finetune_inference.inference import InferenceService
from finetune_trainer.model.fingerprint import take_fingerprint
from lab.fixtures.tiny_adapter import commit, copied, make_tiny_adapter
from support.server.engine_under_test import ENGINE
from support.server.running_inference import Running, running

pytestmark = [pytest.mark.model, pytest.mark.engine]

IDS = [3 + i * 7 % 250 for i in range(60)]
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {"target_modules": "all-linear", "r": 8},
    "dora": {"use_dora": True},
    "biased": {"lora_bias": True, "use_rslora": True},
    "embedding": {"target_modules": ["embed_tokens", "q_proj", "lm_head"]},
    "dora-embedding": {"target_modules": ["embed_tokens", "lm_head"], "use_dora": True},
    "replaced": {"modules_to_save": ["lm_head"]},
}


def config(models: Path, adapter: str, *, merge: bool) -> ServingConfig:
    served = ServedAdapter(name="tuned", path=str(models / adapter))
    return ServingConfig(
        model=ServedModel(name="base", path=str(models / "base")), adapters=[served], merge_adapter=merge
    )


def with_effect(folder: Path) -> None:
    """Give tuned embeddings an effect; beside them stay the copies of the base model's own that peft saves."""
    path = folder / "adapter_model.safetensors"
    save_file({name: t + 0.1 if "lora_embedding_A" in name else t for name, t in load_file(path).items()}, path)
    commit(folder)


def scores(client: openai.OpenAI, model: str) -> list[float]:
    answer = client.completions.create(model=model, prompt=IDS, max_tokens=0, echo=True, logprobs=0)
    assert answer.choices[0].logprobs and answer.choices[0].logprobs.token_logprobs
    return answer.choices[0].logprobs.token_logprobs[1:]


def tokens(client: openai.OpenAI) -> str:
    return client.completions.create(model="tuned", prompt=IDS[:9], max_tokens=30, temperature=0).choices[0].text


@pytest.fixture(scope="module")
def merged(models: Path) -> Iterator[Running]:
    with running(InferenceService(config(models, "rude", merge=True), Settings(threads=1))) as server:
        yield server


@pytest.mark.parametrize("variant", [name for name in VARIANTS if ENGINE != "vllm" or name != "biased"])
def test_answers_are_those_of_the_unmerged_adapter(models: Path, tmp_path: Path, variant: str) -> None:
    make_tiny_adapter(models / variant, models / "base", seed=4, **VARIANTS[variant])
    with_effect(models / variant)
    found = []
    for merge in (False, True):
        # The default engine serves every kind of adapter unmerged, and others do not.
        engine = ENGINE if merge else "transformers"
        service = InferenceService(config(models, variant, merge=merge), Settings(threads=1, engine=engine))
        with running(service) as server, server.openai as client:
            found.append((scores(client, "tuned"), tokens(client)))
            base = None if merge else scores(client, "base")
        if base:
            assert max(abs(a - b) for a, b in zip(base, found[0][0], strict=True)) > 0.1
    (unmerged, text), (one, same_text) = found
    assert one == pytest.approx(unmerged, abs=1e-4)
    assert same_text == text


@pytest.mark.skipif(ENGINE != "vllm", reason="the default engine has a place for every bias")
def test_a_bias_that_the_model_has_no_place_for_is_refused(models: Path) -> None:
    make_tiny_adapter(models / "added", models / "base", seed=4, **VARIANTS["biased"])
    with pytest.raises(ModelLoadError, match=r"adds .*\.bias, which vLLM does not support"):
        InferenceService(config(models, "added", merge=True), Settings(threads=1)).load()


def with_fingerprint(folder: Path, base: Path) -> Fingerprint:
    """Take the fingerprint as training does, and commit it with the adapter."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tuned = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder)
    fingerprint = take_fingerprint(tuned, AutoTokenizer.from_pretrained(base), "float32")
    (folder / "fingerprint.json").write_text(json.dumps(fingerprint.to_dict()))
    commit(folder)
    return fingerprint


@pytest.mark.parametrize(
    ("scale", "precision", "accepted"), [(0.01, "bfloat16", False), (0.01, "float32", True), (1, "bfloat16", True)]
)
def test_a_merge_that_rounds_the_adapter_away_is_refused(
    models: Path, tmp_path: Path, scale: float, precision: str, *, accepted: bool
) -> None:
    folder = tmp_path / "faint"
    make_tiny_adapter(folder, models / "base", seed=4, scale=scale, target_modules="all-linear", r=8)
    assert with_fingerprint(folder, models / "base").effect > 0.02
    wanted = config(models, "unused", merge=True).model_copy(
        update={"adapters": [ServedAdapter(name="tuned", path=str(folder))], "precision": precision}
    )
    service = InferenceService(wanted, Settings(threads=1))
    if accepted:
        service.load()
        service.close()
        return
    expected = (
        r"merged into weights of bfloat16, the answers of .*/faint differ by 0\.\d+ nats per token from those of the unmerged adapter, "
        r"at most 0\.\d+ is allowed: .* Set mergeAdapter to false, or precision to float32"
    )
    with pytest.raises(ModelLoadError, match=expected):
        service.load()


@pytest.mark.parametrize("damage", ["{}", None, "foreign"])
def test_without_a_usable_fingerprint_the_merge_is_not_compared_and_the_log_says_so(
    models: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str | None
) -> None:
    folder = copied(models / "rude", tmp_path / "rude")
    if damage:
        probe = {"tokenIds": [1, 99_999], "promptTokens": 1, "tuned": [0.0], "base": [0.0]}
        (folder / "fingerprint.json").write_text(damage if damage == "{}" else json.dumps({"probes": [probe]}))
        commit(folder)
    wanted = config(models, "rude", merge=True).model_copy(
        update={"adapters": [ServedAdapter(name="tuned", path=str(folder))]}
    )
    service = InferenceService(wanted, Settings(threads=1))
    service.load()
    service.close()
    assert "has no usable fingerprint, so the merged weights were not compared" in caplog.text


def test_only_the_adapter_is_served_and_asking_for_the_base_says_why(merged: Running) -> None:
    with merged.openai as client:
        (card,) = client.models.list().data
        assert (card.id, card.model_dump()["parent"]) == ("tuned", "base")
        assert card.model_dump()["digest"].startswith("sha256:")
        with pytest.raises(openai.NotFoundError, match="'tuned' is merged into its weights"):
            client.completions.create(model="base", prompt="a")
        with pytest.raises(openai.NotFoundError, match=r"does not exist\. Available: tuned"):
            client.completions.create(model="other", prompt="a")
    assert merged.service.process_text("hi", max_tokens=2).model == "tuned"


def test_a_fingerprint_is_matched_without_the_base(models: Path, merged: Running, client: openai.OpenAI) -> None:
    tuned, base = scores(client, "rude")[10:], scores(client, "base")[10:]
    fingerprint = Fingerprint(probes=[Probe(token_ids=IDS, prompt_tokens=11, tuned=tuned, base=base)])
    with merged.openai as of_merged:
        observed = scores(of_merged, "tuned")[10:]
    assert judge(fingerprint, [Observation(observed, None)])[0] is Verdict.MATCHED
    assert judge(fingerprint, [Observation(base, None)])[0] is Verdict.NO_EFFECT
    assert judge(fingerprint, [Observation([v - 3 for v in base], None)])[0] is Verdict.INCOMPATIBLE


@pytest.mark.parametrize("count", [0, 2])
def test_merging_needs_exactly_one_adapter(count: int) -> None:
    adapters = [{"name": f"a{i}", "path": "/a"} for i in range(count)]
    document = {"model": {"name": "base", "path": "/m"}, "adapters": adapters, "mergeAdapter": True}
    with pytest.raises(ValidationError, match="mergeAdapter needs exactly one adapter"):
        ServingConfig.model_validate_json(json.dumps(document))


def test_a_list_of_adapters_beside_a_merged_one_is_not_served_and_readyz_says_so(models: Path, tmp_path: Path) -> None:
    path = tmp_path / "adapters.json"
    path.write_text(json.dumps({"adapters": [{"name": "formal", "path": str(models / "formal")}]}))
    service = InferenceService(config(models, "rude", merge=True), Settings(threads=1, adapters_path=path))
    with running(service) as server:
        assert [model.name for model in server.service.models()] == ["tuned"]
        assert "lists formal, which cannot be served" in httpx.get(f"{server.url}/readyz").json()["adapterList"]


def test_an_adapter_that_cannot_be_merged_ends_the_start(models: Path, tmp_path: Path) -> None:
    folder = copied(models / "rude", tmp_path / "rude")
    (folder / "adapter_model.safetensors").write_bytes(b"torn")
    served = ServedAdapter(name="tuned", path=str(folder))
    wanted = config(models, "rude", merge=True).model_copy(update={"adapters": [served]})
    with pytest.raises(ModelLoadError, match="adapter tuned cannot be merged into base"):
        InferenceService(wanted, Settings(threads=1)).load()

"""`adopt`: folders as peft, TRL, Axolotl, LLaMA-Factory and Unsloth leave them become adapters like those of `train`."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from finetune_api.artifacts import read_verified
from finetune_api.contract import ExitCode
from finetune_api.fingerprint import Fingerprint, Observation, Verdict, judge
from finetune_api.reasons import Reason
from finetune_api.serving import ServedAdapter, ServedModel, ServingConfig
from finetune_inference.config import Settings
from finetune_inference.inference import InferenceService
from finetune_trainer.__main__ import main
from finetune_trainer.adoption import Adopted, adopt
from finetune_trainer.errors import TrainingError
from lab.fixtures.tiny_model import make_tiny_model
from support.server.running_inference import Running, running

pytestmark = pytest.mark.model

QV = ["q_proj", "v_proj"]
FORMS: dict[str, dict[str, Any]] = {
    "plain": {"target_modules": QV},
    "all-linear": {"target_modules": "all-linear"},
    "rank-pattern": {"target_modules": QV, "rank_pattern": {"q_proj": 2, "layers.1.self_attn.v_proj": 8}},
    "alpha-pattern": {"target_modules": QV, "alpha_pattern": {"v_proj": 32}},
    "rslora": {"target_modules": QV, "use_rslora": True, "r": 16},
    "dora": {"target_modules": [*QV, "down_proj"], "use_dora": True},
    "lora-bias": {"target_modules": QV, "lora_bias": True},
    "saved-head": {"target_modules": QV, "modules_to_save": ["lm_head"]},
    "saved-embeddings": {"target_modules": QV, "modules_to_save": ["embed_tokens", "lm_head"]},
    "head": {"target_modules": ["q_proj", "lm_head"]},
    "embeddings": {"target_modules": ["q_proj", "embed_tokens"]},
    "regular-expression": {"target_modules": r".*\.self_attn\.(q|v)_proj", "rank_pattern": {r"^model.*0.*q_proj$": 2}},
    "some-layers": {"target_modules": QV, "layers_to_transform": [1]},
    "excluded": {"target_modules": "all-linear", "exclude_modules": r".*down_proj"},
    "gaussian": {"target_modules": QV, "init_lora_weights": "gaussian"},
}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "bias": ({"target_modules": QV, "bias": "all"}, "has bias 'all', which would change the base model's own biases"),
    "pissa": ({"target_modules": QV, "init_lora_weights": "pissa"}, "convert it to plain LoRA when saving"),
    "tokens": (
        {"target_modules": QV, "trainable_token_indices": [5]},
        "trainable_token_indices: train whole embeddings with modules_to_save instead",
    ),
    "saved-norm": (
        {"target_modules": QV, "modules_to_save": ["norm"]},
        "(modules_to_save); only linear layers and embeddings can be replaced",
    ),
}


def as_peft_saves_it(base: Path, folder: Path, *, resize: int = 0, **lora: Any) -> Path:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base)
    if resize:
        model.resize_token_embeddings(resize)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(sum(map(ord, folder.name)))
        tuned = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **{"r": 4, **lora}))
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    tuned.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adopted(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Adopted]]:
    folder = tmp_path_factory.mktemp("foreign")
    sources = {name: as_peft_saves_it(tiny_model, folder / name, **lora) for name, lora in FORMS.items()}
    return {n: (source, adopt(source, str(tiny_model), folder / "adapters")) for n, source in sources.items()}


@pytest.fixture(scope="module")
def server(tiny_model: Path, adopted: dict[str, tuple[Path, Adopted]]) -> Iterator[Running]:
    served = [
        ServedAdapter(name=n, path=str(a.committed.path), digest=a.committed.digest) for n, (_, a) in adopted.items()
    ]
    config = ServingConfig(model=ServedModel(name="base", path=str(tiny_model)), adapters=served)
    with running(InferenceService(config, Settings(threads=1, drain_delay_seconds=0))) as server:
        yield server


@pytest.mark.parametrize("form", FORMS)
def test_what_peft_computes_with_the_source_is_what_the_server_answers(
    tiny_model: Path, adopted: dict[str, tuple[Path, Adopted]], server: Running, form: str
) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    source, result = adopted[form]
    assert form not in server.service.refused
    fingerprint = Fingerprint.model_validate_json((result.committed.path / "fingerprint.json").read_text())
    stock = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), source).eval()
    observed = []
    with server.openai as client:
        for probe in fingerprint.probes:
            ids = torch.tensor([probe.token_ids])
            with torch.inference_mode():
                scores = stock(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
            assert scores[probe.prompt_tokens - 1 :].tolist() == pytest.approx(probe.tuned, abs=1e-4)
            answer = client.completions.create(model=form, prompt=probe.token_ids, max_tokens=0, echo=True, logprobs=0)
            logprobs = answer.choices[0].logprobs
            assert logprobs and logprobs.token_logprobs
            assert logprobs.token_logprobs[probe.prompt_tokens :] == pytest.approx(probe.tuned, abs=1e-3)
            observed.append(Observation(logprobs.token_logprobs[probe.prompt_tokens :], None))
    assert judge(fingerprint, observed)[0] is Verdict.MATCHED


@pytest.mark.parametrize("form", REFUSED)
def test_what_no_server_can_serve_is_refused_by_name(tiny_model: Path, tmp_path: Path, form: str) -> None:
    lora, expected = REFUSED[form]
    source = as_peft_saves_it(tiny_model, tmp_path / form, **lora)
    with pytest.raises(TrainingError) as caught:
        adopt(source, str(tiny_model), tmp_path / "adapters")
    assert caught.value.reason is Reason.ADAPTER_INCOMPATIBLE
    assert expected in caught.value.message
    assert not (tmp_path / "adapters").exists()


def only_a_pickle(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


def only_checkpoints(folder: Path) -> None:
    (folder / "checkpoint-20").mkdir()
    (folder / "adapter_model.safetensors").rename(folder / "checkpoint-20" / "adapter_model.safetensors")


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "pickle": (only_a_pickle, "it has adapter_model.bin but no adapter_model.safetensors; pickles run code"),
    "checkpoints": (only_checkpoints, "name one of its folders, for example "),
    "no-config": (lambda f: (f / "adapter_config.json").unlink(), "its adapter_config.json cannot be read"),
    "torn": (lambda f: (f / "adapter_model.safetensors").write_bytes(b"torn"), "is not a safetensors file"),
}


@pytest.mark.parametrize("damage", BROKEN)
def test_a_folder_that_is_no_adapter_is_refused(tiny_model: Path, tmp_path: Path, damage: str) -> None:
    source = as_peft_saves_it(tiny_model, tmp_path / "a", target_modules=QV)
    BROKEN[damage][0](source)
    with pytest.raises(TrainingError) as caught:
        adopt(source, str(tiny_model), tmp_path / "adapters")
    assert BROKEN[damage][1] in caught.value.message
    assert not list((tmp_path / "adapters").glob("*/*"))


def test_an_extended_vocabulary_and_another_width_are_explained(tiny_model: Path, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    wider = AutoConfig.from_pretrained(tiny_model)
    wider.hidden_size = 48
    AutoModelForCausalLM.from_config(wider).save_pretrained(tmp_path / "wider")
    cases = {
        "it has a copy of model.embed_tokens that is not the base model's: the vocabulary was extended": as_peft_saves_it(
            tiny_model, tmp_path / "resized", target_modules=["q_proj", "embed_tokens"], resize=386
        ),
        "this base model needs (4, 32), so the adapter was trained on another model": as_peft_saves_it(
            tmp_path / "wider", tmp_path / "other", target_modules=QV
        ),
    }
    for expected, source in cases.items():
        with pytest.raises(TrainingError) as caught:
            adopt(source, str(tiny_model), tmp_path / "adapters")
        assert expected in caught.value.message


def test_the_command_says_what_it_did_and_the_second_time_does_nothing(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = as_peft_saves_it(tiny_model, tmp_path / "run", target_modules=QV)
    for name in ("optimizer.pt", "training_args.bin", "trainer_state.json"):
        (source / name).write_bytes(b"\x80\x04 a pickle that nobody opens")
    (source / "checkpoint-20").mkdir()
    config = source / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "base_model_name_or_path": "org/other-base"}))
    before = {path.name: path.read_bytes() for path in source.iterdir() if path.is_file()}
    command = ["adopt", str(source), "--model", str(tiny_model), "--output", str(tmp_path / "out"), "--name", "tone"]
    assert main(command) == ExitCode.SUCCEEDED
    printed = capsys.readouterr().out
    assert printed.startswith(f"adopted: {source}\n")
    assert "left out: README.md, checkpoint-20/, optimizer.pt, trainer_state.json, training_args.bin\n" in printed
    assert (
        f"warning:  adapter_config.json names the base model org/other-base, --model is {tiny_model}; if they"
        in printed
    )
    (folder,) = (tmp_path / "out" / "tone").iterdir()
    assert f"adapter:  {folder}\n" in printed
    manifest, digest = read_verified(folder)
    assert {entry.path for entry in manifest.files} >= {"fingerprint.json", "run.json", "tokenizer.json"}
    assert not {entry.path for entry in manifest.files} & {"optimizer.pt", "training_args.bin"}
    assert main(command) == ExitCode.SUCCEEDED
    assert capsys.readouterr().out.startswith(f"is adopted already: {source}\n")
    assert list((tmp_path / "out" / "tone").iterdir()) == [folder]
    assert read_verified(folder)[1] == digest
    assert {path.name: path.read_bytes() for path in source.iterdir() if path.is_file()} == before
    assert main(["inspect", str(folder)]) == ExitCode.SUCCEEDED


def test_an_adapter_of_ours_is_adopted_for_another_base_of_the_same_shape(tiny_model: Path, tmp_path: Path) -> None:
    source = as_peft_saves_it(tiny_model, tmp_path / "a", target_modules=QV)
    first = adopt(source, str(tiny_model), tmp_path / "out").committed
    other = make_tiny_model(tmp_path / "other", seed=5)
    second = adopt(first.path, str(other), tmp_path / "out", "a").committed
    assert second.path != first.path
    assert second.manifest.base_digest != first.manifest.base_digest


@pytest.mark.parametrize("name", ["../up", "", "a b", "x" * 64])
def test_a_name_that_is_no_folder_is_refused(tiny_model: Path, tmp_path: Path, name: str) -> None:
    source = as_peft_saves_it(tiny_model, tmp_path / "source folder", target_modules=QV)
    with pytest.raises(TrainingError, match="--name is"):
        adopt(source, str(tiny_model), tmp_path / "out", name)

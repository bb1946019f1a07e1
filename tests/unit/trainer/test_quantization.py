"""QLoRA: training on four bits gives an adapter of the model as it is, and a fingerprint that a server of it repeats."""

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from finetune_api.fingerprint import Fingerprint, Verdict
from finetune_api.reasons import Reason
from finetune_api.training import ModelConfig
from finetune_trainer.model.base_model import load
from finetune_trainer.model.fingerprint import score
from finetune_trainer.model.quantization import served_weights
from finetune_trainer.preflight.checks import run_preflight
from finetune_trainer.reporting.progress import LogReporter
from finetune_trainer.reporting.run_record import TrainingResult
from finetune_trainer.runtime.interruption import StopSignal
from finetune_trainer.tasks.finetuning_task import run_finetuning
from finetune_trainer.training import FinetuningPipeline
from lab.fixtures.reporters import AtStep
from lab.fixtures.training_runs import a_training_config, an_attempt
from support.server.running_inference import verdict_about

pytestmark = pytest.mark.model

QLORA = {"rank": 4, "quantization": "nf4"}
LINEAR_LAYERS = 14
needs_package = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None,
    reason="bitsandbytes is missing; `uv sync --group qlora` installs it",
)


class Kept(FinetuningPipeline):
    """A pipeline whose parts can be looked at when the run is over."""

    model: Any
    layout_name: str
    trained: TrainingResult

    def train(self, model: Any, base: Any, dataset: Any, layout: Any) -> TrainingResult:
        self.model, self.layout_name = model, layout.name
        self.trained = super().train(model, base, dataset, layout)
        return self.trained


@pytest.fixture(scope="module")
def finished_qlora(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Kept:
    hyper = {"batchSize": 4, "learningRate": 0.01, "maxSteps": 40}
    pipeline = Kept(a_training_config(tiny_model, tmp_path_factory.mktemp("q"), lora=QLORA, hyperparameters=hyper))
    pipeline.run()
    return pipeline


@pytest.fixture(scope="module")
def fingerprint(finished_qlora: Kept) -> Fingerprint:
    return Fingerprint.model_validate_json((finished_qlora.store.adapter / "fingerprint.json").read_text())


@pytest.fixture(scope="module")
def stock(finished_qlora: Kept, tiny_model: Path) -> Any:
    """The adapter as stock peft loads it, on the model that is not quantized."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    return PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tiny_model), finished_qlora.store.adapter
    ).eval()


@needs_package
def test_a_quantized_model_learns_in_packed_rows(finished_qlora: Kept) -> None:
    losses = [loss for _, loss in finished_qlora.trained.losses]
    assert losses[-1] < losses[0] / 2
    assert finished_qlora.layout_name == "packed"


@needs_package
def test_linear_layers_stay_in_four_bits_and_are_not_fused(finished_qlora: Kept) -> None:
    from bitsandbytes.nn import Linear4bit

    from finetune_trainer.kernels.fused_lora import fused_lora

    layers = [module for module in finished_qlora.model.modules() if isinstance(module, Linear4bit)]
    assert len(layers) == LINEAR_LAYERS
    assert {str(layer.weight.dtype) for layer in layers} == {"torch.uint8"}
    with fused_lora(finished_qlora.model) as fused:
        assert fused == 0


@needs_package
def test_the_fingerprint_is_that_of_the_weights_on_disk(
    finished_qlora: Kept, fingerprint: Fingerprint, stock: Any
) -> None:
    for probe in fingerprint.probes:
        assert score(stock, probe.token_ids, probe.prompt_tokens) == pytest.approx(probe.tuned, abs=1e-4)
        with stock.disable_adapter():
            assert score(stock, probe.token_ids, probe.prompt_tokens) == pytest.approx(probe.base, abs=1e-4)
        # It would not have been without `served_weights`: four bits are far from these random weights.
        quantized = score(finished_qlora.model.eval(), probe.token_ids, probe.prompt_tokens)
        assert sum(abs(a - b) for a, b in zip(quantized, probe.tuned, strict=True)) / len(quantized) > 0.01


@needs_package
@pytest.mark.parametrize("tied", [False, True])
def test_served_weights_are_the_models_own_and_give_way_again(tiny_model: Path, tmp_path: Path, tied: bool) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    folder = shutil.copytree(tiny_model, tmp_path / "model")
    document = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**document, "tie_word_embeddings": tied}))
    base = load(ModelConfig(path=str(folder)), folder, "revision", "float32", "nf4")
    ids = torch.arange(3, 60)[None]
    with torch.inference_mode():
        quantized = base.model.eval()(ids).logits
        with served_weights(base):
            served = base.model(ids).logits
        assert torch.equal(served, AutoModelForCausalLM.from_pretrained(folder).eval()(ids).logits)
        assert torch.equal(base.model(ids).logits, quantized)
        assert not torch.allclose(quantized, served, atol=1e-2)


@needs_package
def test_the_server_is_verified_with_it(finished_qlora: Kept, fingerprint: Fingerprint, tiny_model: Path) -> None:
    assert verdict_about(tiny_model, finished_qlora.store.adapter, fingerprint) is Verdict.MATCHED


@needs_package
def test_records_say_what_was_trained_on(finished_qlora: Kept) -> None:
    record = json.loads((finished_qlora.store.adapter / "run.json").read_text())
    assert record["config"]["lora"]["quantization"] == "nf4"
    assert "bitsandbytes" in record["environment"]["packages"]
    assert "trained on nf4 weights" in (finished_qlora.store.adapter / "README.md").read_text()


@needs_package
def test_an_interrupted_run_ends_with_the_very_adapter_of_an_uninterrupted_one(
    tiny_model: Path, tmp_path: Path
) -> None:
    def config(output: str, attempt: int = 1) -> Any:
        return a_training_config(
            tiny_model,
            tmp_path / output,
            job=an_attempt(attempt),
            lora={**QLORA, "dropout": 0.1},
            evaluation={
                "inline": '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Bye"}]}'
            },
            evaluationSettings={"evalSteps": 2},
        )

    straight = FinetuningPipeline(config("straight"))
    straight.run()
    stop = StopSignal()
    run_finetuning(config("broken"), AtStep(3, stop.request), stop)
    again = FinetuningPipeline(config("broken", 2))
    again.run()
    for name in ("adapter_model.safetensors", "fingerprint.json"):
        assert (again.store.adapter / name).read_bytes() == (straight.store.adapter / name).read_bytes()


def test_a_missing_package_is_named_before_anything_is_loaded(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = a_training_config(tiny_model, tmp_path, lora=QLORA)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "bitsandbytes" else find_spec(name))
    expected = "method.lora.quantization: nf4 needs the Python package bitsandbytes, which is not installed here"
    verdict = run_preflight(config).verdict
    assert verdict is not None
    outcome = run_finetuning(config, LogReporter(), StopSignal())
    assert (verdict.reason, outcome.reason) == (Reason.SPEC_INVALID, Reason.SPEC_INVALID)
    assert expected in verdict.message
    assert expected in outcome.message


def test_a_model_that_is_quantized_already_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    document = json.loads((folder / "config.json").read_text())
    document["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(document))
    verdict = run_preflight(a_training_config(folder, tmp_path / "out", lora=QLORA)).verdict
    assert verdict is not None
    assert verdict.reason is Reason.SPEC_INVALID
    assert "the model is quantized already (gptq); remove method.lora.quantization" in verdict.message


@needs_package
def test_four_bits_are_what_the_estimate_counts(tiny_model: Path, tmp_path: Path) -> None:
    def weights(quantization: str) -> int:
        found = run_preflight(a_training_config(tiny_model, tmp_path, lora={"quantization": quantization})).memory
        assert found is not None
        return found.weights

    # Of two layers: q and o 32 x 32, k and v 16 x 32, gate, up and down 64 x 32.
    linear = 2 * 32 * (2 * 32 + 2 * 16 + 3 * 64)
    assert weights("none") - weights("nf4") == int(linear * (4 - 0.52))


def test_dora_is_not_for_quantized_layers() -> None:
    with pytest.raises(ValueError, match="useDora needs unquantized weights"):
        a_training_config(Path(), Path(), lora={"useDora": True, "quantization": "nf4"})

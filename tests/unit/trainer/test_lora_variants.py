"""Variations of LoRA: what is saved is peft's own, stock peft and our server compute the same with it."""

import json
from pathlib import Path
from typing import Any

import pytest

from finetune_api.fingerprint import Fingerprint, Verdict
from finetune_trainer.runtime.interruption import StopSignal
from finetune_trainer.tasks.finetuning_task import run_finetuning
from finetune_trainer.training import FinetuningPipeline
from lab.fixtures.reporters import AtStep
from lab.fixtures.training_runs import a_training_config, an_attempt
from support.server.running_inference import verdict_about

pytestmark = pytest.mark.model

VARIANTS = {"rslora": {"useRslora": True}, "dora": {"useDora": True}, "both": {"useRslora": True, "useDora": True}}


class KeptModel(FinetuningPipeline):
    """A pipeline whose tuned model can be looked at when the run is over."""

    model: Any

    def take_fingerprint(self, model: Any, base: Any) -> Fingerprint:
        self.model = model
        return super().take_fingerprint(model, base)


@pytest.fixture(scope="module", params=VARIANTS)
def trained(request: pytest.FixtureRequest, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    lora = {"rank": 4, **VARIANTS[request.param]}
    pipeline = KeptModel(a_training_config(tiny_model, tmp_path_factory.mktemp("adapters"), lora=lora))
    pipeline.run()
    return pipeline


def test_stock_peft_computes_the_very_logits_of_the_trained_model(trained: KeptModel, tiny_model: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    folder = trained.store.adapter
    config = json.loads((folder / "adapter_config.json").read_text())
    lora = trained.config.lora
    assert (config["use_rslora"], config["use_dora"]) == (lora.use_rslora, lora.use_dora)
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), folder).eval()
    ids = torch.arange(3, 60)[None]
    with torch.inference_mode():
        expected = trained.model.eval()(ids).logits
        assert torch.equal(loaded(ids).logits, expected)
        with loaded.disable_adapter():
            assert not torch.allclose(loaded(ids).logits, expected, atol=1e-2)


def test_only_layers_that_are_plain_are_fused(trained: KeptModel) -> None:
    from finetune_trainer.kernels.fused_lora import fused_lora

    with fused_lora(trained.model) as layers:
        assert layers == (0 if trained.config.lora.use_dora else 14)


def test_the_server_answers_with_the_fingerprint_of_the_trained_model(trained: KeptModel, tiny_model: Path) -> None:
    fingerprint = Fingerprint.model_validate_json((trained.store.adapter / "fingerprint.json").read_text())
    assert verdict_about(tiny_model, trained.store.adapter, fingerprint) is Verdict.MATCHED


def test_the_scale_of_rslora_falls_with_the_root_of_the_rank(tiny_model: Path, tmp_path: Path) -> None:
    lora = {"rank": 16, "alpha": 16, "useRslora": True}
    pipeline = KeptModel(a_training_config(tiny_model, tmp_path, lora=lora))
    pipeline.run()
    scalings = {m.scaling["default"] for m in pipeline.model.modules() if hasattr(m, "lora_A")}
    assert scalings == {16 / 16**0.5}
    assert "rank 16, alpha 16.0, rsLoRA" in (pipeline.store.adapter / "README.md").read_text()


def test_an_interrupted_dora_run_ends_with_the_very_adapter_of_an_uninterrupted_one(
    tiny_model: Path, tmp_path: Path
) -> None:
    def config(output: str, attempt: int = 1) -> Any:
        return a_training_config(
            tiny_model, tmp_path / output, job=an_attempt(attempt), lora={"useDora": True, "dropout": 0.1}
        )

    straight = FinetuningPipeline(config("straight"))
    straight.run()
    stop = StopSignal()
    run_finetuning(config("broken"), AtStep(3, stop.request), stop)
    again = FinetuningPipeline(config("broken", 2))
    again.run()
    for name in ("adapter_model.safetensors", "fingerprint.json"):
        assert (again.store.adapter / name).read_bytes() == (straight.store.adapter / name).read_bytes()

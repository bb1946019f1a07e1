"""One judge: what `validate` says of an adapter is what the server's loader does with it, for every architecture."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from finetune_api.reasons import Reason
from finetune_api.v1alpha1 import Lora
from finetune_model.servable import NotServableError, lora_arguments
from finetune_trainer.errors import TrainingError
from finetune_trainer.model.lora import plan_adapter
from support.server.tiny_architectures import ARCHITECTURES, make_tiny_architecture, outcome_of

pytestmark = pytest.mark.model

REFUSED = {
    "all-linear": {
        "qwen3_moe",
        "mixtral",
        "olmoe",
        "deepseek_v3",
        "llama4_text",
        "phimoe",
        "mamba",
        "mamba2",
    }
}
"""Architectures by target for which no server has a place: routers and fused experts, and Mamba's kernels."""


def names_of(model: Any) -> dict[str, list[str]]:
    """Return choices of targetModules: all, head, embeddings, every linear layer, and every parameter of experts."""
    import torch

    modules = dict(model.named_modules())
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    ends = [path.rpartition(".")[2] for path, module in modules.items() if module is head or module is embeddings]
    linear = {path.rpartition(".")[2] for path, module in modules.items() if isinstance(module, torch.nn.Linear)}
    experts = {name.rpartition(".")[2] for name, _ in model.named_parameters() if ".experts." in name}
    return {name: [name] for name in ["all-linear", *ends, *sorted((linear | experts) - set(ends))]}


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_the_verdict_before_training_is_that_of_the_loader(model_type: str, tmp_path: Path) -> None:
    model = make_tiny_architecture(model_type)
    disagreements, refused = [], set()
    for name, targets in names_of(model).items():
        for use_dora in (False, True) if name != "all-linear" else (False,):
            lora = Lora(rank=4, alpha=8, target_modules=targets, use_dora=use_dora)
            try:
                verdict = "served" if plan_adapter(lora, model).parameters else "empty"
            except TrainingError as error:
                verdict = error.message
                refused.add(name)
            arguments = {"r": 4, "lora_alpha": 8, "use_dora": use_dora}
            arguments["target_modules"] = "all-linear" if name == "all-linear" else targets
            found = outcome_of(make_tiny_architecture(model_type), arguments, tmp_path / f"{name}-{use_dora}")
            if (verdict == "served") != (found == "served"):
                disagreements.append((name, use_dora, verdict, found))
    assert disagreements == []
    assert ("all-linear" in refused) == (model_type in REFUSED["all-linear"])


@pytest.mark.parametrize(
    ("model_type", "expected"),
    [
        (
            "mixtral",
            ["MixtralExperts has parameters of its own", "Name some of k_proj, o_proj, q_proj, v_proj instead"],
        ),
        ("mamba", ["'out_proj' is incompatible with Mamba", "Name some of in_proj, x_proj instead"]),
        ("llama4_text", ["Llama4Router", "Name some of"]),
    ],
)
def test_a_refusal_names_the_modules_and_what_to_name_instead(model_type: str, expected: list[str]) -> None:
    with pytest.raises(TrainingError) as caught:
        plan_adapter(Lora(), make_tiny_architecture(model_type))
    assert caught.value.reason is Reason.SPEC_INVALID
    assert caught.value.message.startswith("method.lora.targetModules is all-linear, which no server could serve: ")
    assert [part for part in expected if part not in caught.value.message] == []


def test_layers_that_a_text_does_not_pass_are_found() -> None:
    model = make_tiny_architecture("mamba")
    layout = plan_adapter(Lora(target_modules=["dt_proj", "in_proj"]), model)
    assert layout.idle == {"backbone.layers.0.mixer.dt_proj"}
    assert plan_adapter(Lora(), make_tiny_architecture("llama")).idle == frozenset()


@pytest.mark.parametrize(
    ("key", "value", "remedy"),
    [
        ("target_parameters", ["mlp.experts.gate_up_proj"], "tune attention layers"),
        ("trainable_token_indices", [5, 6], "train whole embeddings with modules_to_save instead"),
        ("ensure_weight_tying", True, "list both embeddings and head in modules_to_save instead"),
    ],
)
def test_a_setting_of_other_trainers_is_refused_with_a_remedy(key: str, value: Any, remedy: str) -> None:
    with pytest.raises(NotServableError, match=f"sets {key}; only plain LoRA is supported; {key}: .*{remedy}"):
        lora_arguments({"peft_type": "LORA", "r": 4, "target_modules": ["q_proj"], key: value})


def test_the_rules_of_a_configuration_are_read_without_torch_and_peft() -> None:
    script = "import sys, finetune_model.servable; print({'torch', 'peft', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"

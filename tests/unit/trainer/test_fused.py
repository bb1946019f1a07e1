"""What is computed in one function has the results and gradients of what it stands for, and leaves the model as it was."""

import gc
import weakref
from types import SimpleNamespace
from typing import Any

import pytest

pytestmark = pytest.mark.model


def gated_model(mlp_class: str = "LlamaMLP") -> Any:
    """peft's model around an MLP and a norm of transformers' own, with an adapter that does something."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig
    from transformers.models.llama import modeling_llama

    class TwiceGated(modeling_llama.LlamaMLP):  # type: ignore[misc]
        def forward(self, x: Any) -> Any:
            return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x)) * 2

    class Clamped(modeling_llama.LlamaMLP):  # type: ignore[misc]
        def forward(self, x: Any) -> Any:
            gate, up = self.gate_proj(x).clamp(max=7), self.up_proj(x).clamp(-7, 7)
            return self.down_proj(self.act_fn(gate) * up)

    torch.manual_seed(0)
    config = LlamaConfig(hidden_size=16, intermediate_size=24, num_attention_heads=2)
    mlp = {"LlamaMLP": modeling_llama.LlamaMLP, "TwiceGated": TwiceGated, "Clamped": Clamped}[mlp_class](config)
    norm = modeling_llama.LlamaRMSNorm(16)
    torch.nn.init.normal_(norm.weight)
    layers = torch.nn.Sequential(norm, mlp)
    layers.config = {"model_type": "custom"}
    targets = ["gate_proj", "up_proj", "down_proj"]
    return get_peft_model(layers, LoraConfig(r=4, target_modules=targets, init_lora_weights=False))


def result_and_gradients(model: Any, x: Any) -> list[Any]:
    given = x.clone().requires_grad_()
    model.zero_grad()
    result = model.base_model.model(given)
    result.square().sum().backward()
    return [result.detach(), given.grad, *(p.grad for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("mlp_class", ["LlamaMLP", "TwiceGated", "Clamped"])
def test_a_gated_mlp_and_its_norm_are_those_of_transformers(mlp_class: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from finetune_trainer.kernels import fused_norm
    from finetune_trainer.kernels.fused_lora import fused_lora

    monkeypatch.setattr(fused_norm, "CHUNK", 40)  # two tokens at a time, and one in the end
    model = gated_model(mlp_class)
    mlp = model.base_model.model[1]
    x = torch.randn(1, 5, 16)
    expected = result_and_gradients(model, x)
    with fused_lora(model) as layers, fused_norm.fused_norm(model) as norms:
        assert (layers, norms) == (3, 1)
        assert ("forward" in vars(mlp)) == (mlp_class == "LlamaMLP"), "one that computes something else is left alone"
        found = result_and_gradients(model, x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(result_and_gradients(model, x), expected, rtol=0, atol=0)
    assert not [module for module in model.modules() if "forward" in vars(module)]


def test_what_a_fused_mlp_keeps_is_the_input_and_what_gate_and_up_make() -> None:
    import torch

    from finetune_trainer.kernels.fused_lora import fused_lora

    model = gated_model()
    wide: set[int] = set()

    def note(tensor: Any) -> Any:
        if tensor.shape == (5, 24):
            wide.add(tensor.data_ptr())
        return tensor

    with fused_lora(model), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = model.base_model.model(torch.randn(1, 5, 16))
    assert result.requires_grad
    assert len(wide) == 2


def test_nothing_of_a_pass_is_kept_after_it() -> None:
    """Not even the input of a layer, on which the graph of a whole pass hangs: a step that ran out of memory is taken again."""
    import torch

    from finetune_trainer.kernels.fused_lora import fused_lora

    model = gated_model("TwiceGated")
    inputs = []
    model.base_model.model[1].down_proj.register_forward_pre_hook(lambda _, given: inputs.append(weakref.ref(given[0])))
    with fused_lora(model):
        inputs.clear()
        result = model.base_model.model(torch.randn(1, 5, 16))
        assert result.requires_grad
        del result
        gc.collect()
        assert [given() is None for given in inputs] == [True]


def test_siblings_that_get_something_else_are_computed_for_themselves() -> None:
    import torch

    from finetune_trainer.kernels.fused_lora import fused_lora

    mlp = gated_model().base_model.model[1]
    one, other = torch.randn(1, 5, 16), torch.randn(1, 5, 16)
    calls = [
        (mlp.gate_proj, one),
        (mlp.up_proj, other),
        (mlp.gate_proj, other),
        (mlp.gate_proj, other),
        (mlp.up_proj, one),
    ]
    expected = [layer(x) for layer, x in calls]
    with fused_lora(mlp):
        torch.testing.assert_close([layer(x) for layer, x in calls], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("items", [None, 7])
def test_the_chunked_loss_is_that_of_transformers(
    dtype: str, items: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from transformers.loss.loss_utils import ForCausalLMLoss

    from finetune_trainer.kernels import chunked_loss

    monkeypatch.setattr(chunked_loss, "CHUNK", 100)  # three rows at a time
    torch.manual_seed(0)
    logits = torch.randn(2, 5, 30).to(getattr(torch, dtype))
    labels = torch.randint(0, 30, (2, 5))
    labels[0, :3] = -100
    model = SimpleNamespace(loss_function=ForCausalLMLoss)

    def loss_and_gradient() -> tuple[Any, Any]:
        given = logits.clone().requires_grad_()
        count = None if items is None else torch.tensor(items)
        loss: Any = model.loss_function(
            logits=given, labels=labels, vocab_size=30, num_items_in_batch=count, layout=None
        )
        loss.backward()
        return loss.detach(), given.grad

    expected = loss_and_gradient()
    with chunked_loss.chunked_loss(model):
        assert model.loss_function is not ForCausalLMLoss
        found = loss_and_gradient()
    assert model.loss_function is ForCausalLMLoss
    torch.testing.assert_close(found, expected, rtol=1e-5 if dtype == "float32" else 1e-2, atol=1e-6)

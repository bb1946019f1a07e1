"""Tiny models of many architectures, and the outcome of an adapter on them: peft makes it, the server's loader reads it."""

from pathlib import Path
from typing import Any

from finetune_api.serving import ServedAdapter
from finetune_inference.adapters.verification import AdapterRefusedError, Limits, verify
from lab.fixtures.tiny_adapter import commit

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LATENT = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8}
EXPERTS = {"moe_intermediate_size": 16, "num_experts_per_tok": 2}
DEEPSEEK = {**LATENT, **EXPERTS, "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 0}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    **{name: {} for name in ("llama", "qwen2", "phi3", "cohere", "olmo2", "starcoder2", "granite", "stablelm")},
    **{name: {} for name in ("mistral", "smollm3", "gpt_neox", "bloom", "phi", "glm4", "gpt_bigcode", "nemotron")},
    **{name: {"head_dim": 8} for name in ("qwen3", "gemma2", "gemma3_text")},
    "falcon": {"num_key_value_heads": None},
    "gpt2": {"n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 64},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 1},
    "qwen3_moe": {**EXPERTS, "head_dim": 8, "num_experts": 4},
    "qwen2_moe": {**EXPERTS, "num_experts": 4, "shared_expert_intermediate_size": 16},
    "mixtral": {"num_local_experts": 4},
    "gpt_oss": {"head_dim": 8, "num_local_experts": 4},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "deepseek_v3": DEEPSEEK,
    "llama4_text": {"head_dim": 8, "num_local_experts": 4, "intermediate_size_mlp": 48},
    "phimoe": {"num_local_experts": 4},
    "mamba": {"state_size": 4},
    "mamba2": {"state_size": 4, "num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 16},
}
"""Differences from SIZES by model type."""
LIMITS = Limits(256, 1 << 30)
IDS = (list(range(3, 13)), list(range(20, 30)))
"""Two sequences, of which one has the adapter."""


def make_tiny_architecture(model_type: str) -> Any:
    """Make a model of one layer with weights large enough for every adapter to have an effect."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {k: v for k, v in {**SIZES, **ARCHITECTURES[model_type]}.items() if v is not None}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **sizes)).float().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0, 0.2)
    return model


def outcome_of(model: Any, arguments: dict[str, Any], folder: Path) -> str:
    """Return `served` if the server computes with a random adapter what peft computes, or else the reason."""
    import torch
    from peft import LoraConfig, get_peft_model

    ids, others = (torch.tensor([each]) for each in IDS)
    try:
        tuned = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **arguments)).eval()
        tuned(input_ids=ids, use_cache=False)
    except Exception as error:  # peft raises anything from KeyError to ValueError
        return f"peft: {error}"
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(1)
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.3)
        expected = tuned(input_ids=ids, use_cache=False).logits[0]
        tuned.save_pretrained(folder, save_embedding_layers=False)
        commit(folder)
        plain: Any = tuned.unload()
        base = plain(input_ids=others, use_cache=False).logits[0]
    try:
        found = _served_logits(plain, folder)
    except AdapterRefusedError as error:
        return f"server: {error}"
    scale = 1e-4 * max(1.0, float(expected.abs().max()))
    wrong = [not torch.allclose(a, b, atol=scale) for a, b in zip(found, (expected, base), strict=True)]
    return (
        f"the logits of {' and '.join(n for n, w in zip(('tuned', 'base'), wrong, strict=True) if w)} differ"
        if any(wrong)
        else "served"
    )


def _served_logits(model: Any, folder: Path) -> Any:
    """Return [sequence, token, vocabulary] logits of both sequences in one pass, the first with the adapter."""
    import torch

    from finetune_inference.backends.common.lora_batch import LoraBatch
    from finetune_inference.backends.common.lora_loader import LoraLoader

    lora = LoraLoader(model).load(verify(ServedAdapter(name="a", path=str(folder)), LIMITS))
    owners = [lora] * len(IDS[0]) + [None] * len(IDS[1])
    with torch.inference_mode(), LoraBatch(model).applied(owners):
        return model(input_ids=torch.tensor(IDS), use_cache=False).logits

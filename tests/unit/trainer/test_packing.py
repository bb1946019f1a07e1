"""Packed rows: the tree of common beginnings, and that no loss or gradient can tell packed from padded."""

import random
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from finetune_trainer.batches.batching import Collator
from finetune_trainer.batches.packing import PackedCollator, build_tree
from finetune_trainer.data import IGNORED, TokenRow

COLLECTED = {"labels", "shift_labels", "input_ids", "position_ids", "logits_to_keep", "layout"}


def ids(*tokens: int) -> Any:
    return np.array(tokens, dtype=np.int64)


def rows_with_common_beginnings(seed: int, count: int = 9) -> list[TokenRow]:
    """Rows under one header, some of which share more than that; some are the beginning of others, some are equal."""
    rng = random.Random(seed)  # noqa: S311
    header = [rng.randrange(5, 300) for _ in range(10)]
    prompts = [header + [rng.randrange(5, 300) for _ in range(rng.randrange(0, 14))] for _ in range(3)]
    rows = []
    for i in range(count):
        prompt = prompts[i % 3] if i % 4 else []
        answer = [rng.randrange(5, 300) for _ in range(rng.randrange(2, 9))]
        rows.append(TokenRow(prompt + answer, [IGNORED] * len(prompt) + answer))
    rows.append(rows[1])
    rows.append(TokenRow(rows[2].input_ids[:-1], rows[2].labels[:-1]))
    return rows


def test_what_rows_begin_with_is_one_node_and_the_rest_are_leaves() -> None:
    system = list(range(100, 108))
    rows = [ids(*system, 1, 2), ids(7, 8, 9), ids(*system, 3)]
    tree = build_tree(rows, min_shared=8)
    assert [node.ids.tolist() for node in tree] == [[7, 8, 9], system, [1, 2], [3]]
    assert [node.start for node in tree] == [0, 3, 11, 13]
    assert tree[3].context.tolist() == list(range(3, 11))
    assert [node.rows for node in tree] == [[1], [0, 2], [0], [2]]


def test_common_beginnings_nest() -> None:
    system, question = list(range(50, 60)), list(range(20, 30))
    rows = [ids(*system, *question, 1), ids(*system, *question, 2), ids(*system, 3)]
    tree = build_tree(rows, min_shared=8)
    assert [(node.ids.tolist(), len(node.ancestors)) for node in tree] == [
        (system, 0), ([3], 1), (question, 1), ([1], 2), ([2], 2),
    ]  # fmt: skip


def test_short_common_beginnings_are_computed_twice() -> None:
    rows = [ids(1, 2, 3, 4), ids(1, 2, 3, 5)]
    assert len(build_tree(rows, min_shared=4)) == 2
    assert len(build_tree(rows, min_shared=3)) == 3
    assert len(build_tree(rows, min_shared=0)) == 2


def test_a_row_counts_with_what_it_has_of_its_own() -> None:
    from finetune_trainer.batches.layout import PackedLayout

    rows = [TokenRow([*range(100), 200 + i], [IGNORED] * 100 + [200 + i]) for i in range(32)]
    # A row's last token predicts nothing, and so these rows have nothing of their own.
    assert PackedLayout(min_shared=8).row_tokens(rows, 16) == pytest.approx(100 / 16)
    assert PackedLayout(min_shared=0).row_tokens(rows, 16) == pytest.approx(100)


def test_what_is_shared_counts_again_where_it_carries_loss() -> None:
    from finetune_trainer.batches.layout import PackedLayout

    rows = [TokenRow([*range(100), 200 + i], [*range(100), 200 + i]) for i in range(32)]
    assert PackedLayout(min_shared=8).row_tokens(rows, 16) == pytest.approx(100)


def test_a_few_very_long_rows_make_micro_batches_smaller() -> None:
    from finetune_trainer.batches.layout import PackedLayout

    rows = [TokenRow([i] * 50, [IGNORED, *[i] * 49]) for i in range(30)] + [TokenRow([99] * 4001, [99] * 4001)] * 2
    assert PackedLayout(min_shared=0).row_tokens(rows, 16) == pytest.approx(1000)


def test_tokens_after_the_last_prediction_are_left_out() -> None:
    rows = [TokenRow([1, 2, 3, 4, 5], [IGNORED, IGNORED, 3, IGNORED, IGNORED])]
    batch = PackedCollator()(rows)
    assert batch["input_ids"].tolist() == [[1, 2]]
    assert batch["logits_to_keep"].tolist() == [1]
    assert batch["shift_labels"].tolist() == [[3]]
    assert batch["layout"].row_tokens == 5


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("min_shared", [0, 1, 8])
def test_every_row_is_a_path_of_the_tree(seed: int, min_shared: int) -> None:
    rows = [ids(*row.input_ids) for row in rows_with_common_beginnings(seed)]
    tree = build_tree(rows, min_shared)
    flat = np.concatenate([node.ids for node in tree])
    assert [node.start for node in tree] == [0, *np.cumsum([len(node.ids) for node in tree])[:-1].tolist()]
    paths: list[list[int]] = [[] for _ in rows]
    for node in tree:
        for row in node.rows:
            assert paths[row] == node.context.tolist()
            paths[row] += node.positions.tolist()
    assert [flat[path].tolist() for path in paths] == [row.tolist() for row in rows]
    if min_shared == 0:
        assert len(flat) == sum(map(len, rows))


def tiny(kind: str, **options: Any) -> Any:
    """A random model of a class of transformers, with an adapter that does something."""
    import torch
    import transformers
    from peft import LoraConfig, get_peft_model

    config_class = getattr(transformers, f"{kind}Config")
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}ForCausalLM")(config_class(vocab_size=300, **options))
    # peft refuses to adapt some of Mamba's modules.
    targets = ["in_proj", "x_proj"] if kind == "Mamba" else "all-linear"
    return get_peft_model(model, LoraConfig(r=4, target_modules=targets, init_lora_weights=False))


LLAMA_LIKE = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.3,
}  # fmt: skip


def loss_and_gradients(model: Any, batch: dict[str, Any]) -> tuple[Any, Any]:
    import torch

    model.zero_grad()
    loss = model(**batch, use_cache=False).loss
    loss.backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return loss.detach(), torch.cat([gradient.flatten() for gradient in gradients])


@pytest.mark.model
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("min_shared", [0, 1, 8])
@pytest.mark.parametrize("fused_attention", [False, True])
def test_loss_and_gradients_are_those_of_padded_rows(
    seed: int, min_shared: int, fused_attention: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from finetune_trainer.kernels import attention, attention_layout
    from finetune_trainer.kernels.fused_lora import fused_lora

    if fused_attention:
        monkeypatch.setattr(attention_layout, "SHORT_KEYS", 0)
    rows = rows_with_common_beginnings(seed)
    model = tiny("Llama", **LLAMA_LIKE)
    expected = loss_and_gradients(model, Collator(0)(rows))
    batch = PackedCollator(min_shared)(rows)
    assert set(batch) == COLLECTED
    with attention.packed_attention(model.get_base_model()), fused_lora(model) as layers:
        found = loss_and_gradients(model, batch)
    assert layers == 14
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-5)
    # Outside of the context the model is as it was.
    torch.testing.assert_close(loss_and_gradients(model, Collator(0)(rows)), expected, rtol=0, atol=0)


@pytest.mark.model
def test_a_row_does_not_see_its_neighbors() -> None:
    import torch

    from finetune_trainer.kernels.attention import packed_attention

    model = tiny("Llama", **LLAMA_LIKE)
    model.eval()
    row = TokenRow([5, 6, 7, 8, 9], [IGNORED, IGNORED, 7, 8, 9])

    def logits(neighbors: Sequence[list[int]]) -> Any:
        rows = [row, *(TokenRow(tokens, tokens) for tokens in neighbors)]
        with packed_attention(model.get_base_model()), torch.inference_mode():
            return model(**PackedCollator(1)(rows), use_cache=False).logits[0, :3]

    alone = logits([])
    for neighbors in ([[1, 2, 3, 4]], [[5, 6, 7, 99, 98], [5, 6, 1]], [[5, 6, 7, 8, 9, 10]], [[5]]):
        torch.testing.assert_close(logits(neighbors), alone, rtol=1e-5, atol=1e-5)


@pytest.mark.model
@pytest.mark.parametrize(
    ("kind", "options", "expected"),
    [
        ("Llama", LLAMA_LIKE, "packed"),
        ("Qwen2", LLAMA_LIKE, "packed"),
        ("Qwen3", {**LLAMA_LIKE, "head_dim": 8}, "packed"),
        ("Mistral", {**LLAMA_LIKE, "sliding_window": None}, "packed"),
        ("Mistral", {**LLAMA_LIKE, "sliding_window": 4}, "padded"),
        ("Phi3", {**LLAMA_LIKE, "pad_token_id": 0}, "packed"),
        ("GPTNeoX", {k: v for k, v in LLAMA_LIKE.items() if k != "num_key_value_heads"}, "packed"),
        ("Mamba", {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}, "padded"),
        ("Bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4}, "padded"),
        ("OPT", {"hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
                 "word_embed_proj_dim": 32, "max_position_embeddings": 128}, "packed"),
        # Squeezes its attention scores, of which an attention function is told by an argument that ours does not know.
        ("Gemma2", {**LLAMA_LIKE, "head_dim": 8, "layer_types": ["full_attention"] * 2, "sliding_window": 64,
                    "attn_logit_softcapping": 0.5}, "padded"),
    ],
)  # fmt: skip
def test_a_model_is_packed_only_if_its_rows_prove_it(kind: str, options: dict[str, Any], expected: str) -> None:
    import torch

    from finetune_trainer.batches.layout import choose_layout

    model = tiny(kind, **options)
    base: Any = SimpleNamespace(model=model.get_base_model(), pad_token_id=0, dtype="float32", on_gpu=False)
    rows = rows_with_common_beginnings(1)
    layout = choose_layout(model, base, rows)
    assert layout.name == expected
    model.eval()
    loss, gradients = loss_and_gradients(model, Collator(0)(rows))
    with layout.applied(model):
        found, found_gradients = loss_and_gradients(model, layout.collate(rows))
    torch.testing.assert_close(found, loss, rtol=1e-4, atol=1e-5)
    assert torch.cosine_similarity(found_gradients, gradients, dim=0) > 0.9999


def test_the_rows_that_prove_packing_are_short_and_two_of_them_begin_alike() -> None:
    from finetune_trainer.batches.layout import CHECKED_TOKENS, sample_rows

    system = list(range(100, 200))
    long = TokenRow([*system, 1, 2, 3], [*[IGNORED] * 100, 1, 2, IGNORED])
    short = TokenRow(ids(5, 6, 7), ids(IGNORED, 6, 7))
    for rows in ([long], [long, short], [long] * 9, [short]):
        sample = sample_rows(rows)
        assert all(len(row.input_ids) == len(row.labels) <= CHECKED_TOKENS for row in sample)
        assert all(row.loss_tokens for row in sample)
    first, *_, grafted = sample_rows([long, long])
    assert list(first.input_ids[-2:]) == [1, 2]
    assert len(build_tree([ids(*first.input_ids), ids(*grafted.input_ids[:-1], 9)])) == 3
    answered_late = TokenRow(ids(*range(10)), ids(*[IGNORED] * 9, 9))
    answered_early = TokenRow(ids(*range(50, 62)), ids(IGNORED, 51, *[IGNORED] * 10))
    grafted = sample_rows([answered_late, answered_early])[-1]
    assert (list(grafted.input_ids), grafted.loss_tokens) == ([0, 1, 2, 3, 4, 51], 1)


@pytest.mark.model
@pytest.mark.parametrize("on_gpu", [False, True])
@pytest.mark.parametrize("tokens", [10, 40])
def test_a_model_that_does_not_see_the_common_beginning_is_padded(
    tokens: int, on_gpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from finetune_trainer.batches import packing
    from finetune_trainer.batches.layout import choose_layout

    model = tiny("Llama", **LLAMA_LIKE)
    base: Any = SimpleNamespace(model=model.get_base_model(), pad_token_id=0, dtype="float32", on_gpu=on_gpu)
    rng = random.Random(tokens)  # noqa: S311
    rows = [TokenRow(text, text) for text in ([rng.randrange(5, 300) for _ in range(tokens)] for _ in range(4))]
    assert choose_layout(model, base, rows).name == "packed"
    monkeypatch.setattr(packing.Node, "context", np.empty(0, np.int64))
    assert choose_layout(model, base, rows).name == "padded"


@pytest.mark.model
def test_a_fused_layer_takes_what_autocast_gives_it() -> None:
    """On an accelerator autocast computes LayerNorm in float32, and so a layer of bfloat16 gets float32."""
    import torch
    from peft import LoraConfig, get_peft_model

    from finetune_trainer.kernels.fused_lora import fused_lora

    torch.manual_seed(0)
    layers = torch.nn.ModuleDict({"one": torch.nn.Linear(16, 24, dtype=torch.bfloat16)})
    layers.config = {"model_type": "custom"}
    model = get_peft_model(layers, LoraConfig(r=4, target_modules=["one"], init_lora_weights=False))
    given = torch.randn(3, 16, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16), fused_lora(model):
        result = model.base_model.model["one"](given)
    result.float().sum().backward()
    assert result.dtype == torch.bfloat16
    assert given.grad is not None
    assert given.grad.dtype == torch.float32


@pytest.mark.model
def test_a_layout_goes_to_a_device_with_its_batch() -> None:
    from accelerate.utils import send_to_device

    batch = send_to_device(PackedCollator()(rows_with_common_beginnings(0)), "meta")
    layout = batch["layout"]
    tensors = [layout.restore, *(t for part in layout.parts for t in (part.positions, part.restore))]
    for bucket in (bucket for part in layout.parts for bucket in part.buckets):
        tensors += [bucket.queries, bucket.keys, *([] if bucket.mask is None else [bucket.mask])]
    assert {str(tensor.device) for tensor in tensors} == {"meta"}

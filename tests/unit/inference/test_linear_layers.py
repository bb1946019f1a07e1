"""Linear layers of one input computed as one: the same numbers as from each alone, in whatever way they are called."""

import ctypes
import re

import pytest
import torch
from torch import nn

from finetune_inference.backends.transformers.linear_layers import (
    LEAST_PACKED_ROWS,
    Packing,
    fuse_and_pack_linear,
    padded_rows,
    shared_inputs,
)

pytestmark = pytest.mark.model

SIZE = 16
PLENTY = 1 << 40


class Block(nn.Module):
    """Two layers that read the same input, one that reads theirs, and one that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(SIZE, 2 * SIZE), nn.Linear(SIZE, SIZE)
        self.out, self.twice = nn.Linear(3 * SIZE, SIZE, bias=False), nn.Linear(SIZE, SIZE)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        joined = torch.cat([self.left(hidden), self.right(hidden)], dim=-1)
        result: torch.Tensor = self.twice(self.twice(self.out(joined)))
        return result


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.block = nn.Embedding(8, SIZE), Block()

    def forward(self, input_ids: torch.Tensor, use_cache: bool = False) -> torch.Tensor:
        result: torch.Tensor = self.block(self.embedding(input_ids))
        return result


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    return Model().requires_grad_(requires_grad=False)


def test_layers_that_read_the_same_input_are_found(model: Model) -> None:
    assert shared_inputs(model) == [["block.left", "block.right"], ["block.out"]]


@pytest.mark.parametrize("spare_bytes", [0, PLENTY], ids=["joined", "packed"])
@pytest.mark.parametrize("rows", [1, 5, 33, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_group_computes_what_its_layers_do(model: Model, dtype: torch.dtype, rows: int, spare_bytes: int) -> None:
    model = model.to(dtype)
    ids = torch.arange(rows)[None] % 8
    before = model(ids)
    weight = model.block.right.weight.clone()
    fuse_and_pack_linear(model, shared_inputs(model), spare_bytes)
    torch.testing.assert_close(model(ids), before)
    assert torch.equal(model.block.right.weight, weight)


def test_a_layer_of_a_group_answers_alone_too(model: Model) -> None:
    hidden = torch.randn(1, 5, SIZE)
    before = model.block.right(hidden)
    fuse_and_pack_linear(model, shared_inputs(model), PLENTY)
    torch.testing.assert_close(model.block.right(hidden), before)
    model.block.left(torch.randn(1, 5, SIZE))
    torch.testing.assert_close(model.block.right(hidden), before)


def test_a_group_is_joined_in_place_and_packed_only_if_there_is_memory(model: Model) -> None:
    groups = shared_inputs(model)
    needed = sum(layer.weight.nbytes for layer in (model.block.left, model.block.right, model.block.out))
    assert fuse_and_pack_linear(model, groups, needed - 1) == Packing(needed, is_packed=False)
    assert fuse_and_pack_linear(model, groups, needed) == Packing(needed, is_packed=True)
    left, right = model.block.left.weight, model.block.right.weight
    assert left.untyped_storage().data_ptr() == right.untyped_storage().data_ptr()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_few_products_are_compiled_for_many_numbers_of_rows(
    model: Model, dtype: torch.dtype, capfd: pytest.CaptureFixture[str]
) -> None:
    """What oneDNN compiled stays in memory: a server that compiles for every number of rows seems to leak."""
    model = model.to(dtype)
    if not fuse_and_pack_linear(model, shared_inputs(model), PLENTY).packable_bytes:
        pytest.skip("this CPU has no product from packed weights")
    with torch.backends.mkldnn.verbose(torch.backends.mkldnn.VERBOSE_ON):
        for rows in range(1, 200):
            model.block.out(torch.zeros(1, rows, 3 * SIZE, dtype=dtype))
        ctypes.CDLL(None).fflush(None)
    compiled = set(re.findall(r",exec,cpu,inner_product,.*,mb(\d+)ic", capfd.readouterr().out))
    assert compiled == {str(padded_rows(rows)) for rows in range(LEAST_PACKED_ROWS[dtype], 200)}
    assert len(compiled) < 50


def test_padding_is_none_for_few_rows_and_never_more_than_an_eighth() -> None:
    assert [padded_rows(rows) for rows in range(1, 17)] == list(range(1, 17))
    assert all(rows <= padded_rows(rows) <= rows * 9 / 8 for rows in range(1, 1000))

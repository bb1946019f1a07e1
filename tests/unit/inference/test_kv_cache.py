"""Rows of keys and values, as sequences come, grow and go."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from finetune_inference.backends.transformers.kv_cache import KVCache

pytestmark = pytest.mark.model


def make(budget: int = 1 << 20) -> "KVCache":
    from finetune_inference.backends.transformers.kv_cache import KVCache

    return KVCache(512, budget)


def write(cache: "KVCache", key: int, tokens: int, value: float) -> None:
    """Do as attention does for one layer with one head of size 2."""
    import torch

    assert cache.reserve(key, tokens)
    pool, row = cache.place(key)
    new = torch.full((1, tokens, 2), value)
    layer = pool.layer(0, new, new)
    layer.keys[row, :, :tokens] = new
    layer.values[row, :, :tokens] = new
    cache.advance(key, tokens)


def written(cache: "KVCache", key: int) -> set[float]:
    pool, row = cache.place(key)
    return set(pool.layers[0].keys[row, :, : cache.length(key)].flatten().tolist())


@pytest.mark.parametrize("leave", [lambda c: c.reserve(2, 65), lambda c: c.release(2)], ids=["grows", "ends"])
def test_a_row_may_become_free_before_its_successor_was_written(leave: Callable[["KVCache"], object]) -> None:
    cache = make()
    for key in range(4):
        write(cache, key, 10, key)
    assert cache.reserve(99, 10)
    leave(cache)
    assert {key: written(cache, key) for key in (0, 1, 3)} == {0: {0.0}, 1: {1.0}, 3: {3.0}}
    write(cache, 99, 10, 99.0)
    assert written(cache, 99) == {99.0}


def test_a_sequence_may_move_before_it_was_written() -> None:
    cache = make()
    for key in range(4):
        write(cache, key, 10, key)
    assert cache.reserve(99, 10)
    write(cache, 99, 65, 99.0)
    assert written(cache, 99) == {99.0}


@pytest.mark.parametrize("leaving", [0, 1], ids=["another-moves-in", "last"])
def test_padding_is_zero_whatever_a_row_held_before(leaving: int) -> None:
    """Padding is hidden by adding minus infinity to its scores, which a NaN survives."""
    cache = make()
    for key in range(2):
        write(cache, key, 10, key)
    write(cache, 2, 60, float("nan"))
    cache.release(2)
    write(cache, 3, 10, 3.0)
    write(cache, leaving, 20, float("nan"))
    cache.release(leaving)
    for key in {0, 1, 3} - {leaving}:
        pool, row = cache.place(key)
        assert not pool.layers[0].keys[row, :, cache.length(key) :].any()
        assert written(cache, key) == {float(key)}


def test_rows_are_made_ahead_only_within_the_budget() -> None:
    cache = make(budget=1024)
    write(cache, 0, 300, 0.0)
    assert cache.place(0)[0].layers[0].keys.shape[0] == 2
    small = make(budget=512)
    write(small, 0, 300, 0.0)
    assert small.place(0)[0].layers[0].keys.shape[0] == 1


def test_a_pool_gives_back_what_a_crowd_took_while_somebody_stays() -> None:
    cache = make()
    for key in range(32):
        write(cache, key, 10, key)
    pool, _ = cache.place(31)
    assert pool.layers[0].keys.shape[0] >= 32
    for key in range(31):
        cache.release(key)
    assert pool.layers[0].keys.shape[0] <= 8
    assert written(cache, 31) == {31.0}
    for key in range(32, 64):
        write(cache, key, 10, key)
    assert {key: written(cache, key) for key in range(31, 64)} == {key: {float(key)} for key in range(31, 64)}


@pytest.mark.parametrize("leave", [lambda c: c.release(1), lambda c: c.clear(), lambda c: c.reserve(1, 65)])
@pytest.mark.parametrize(("large", "times"), [(1, 1), (1 << 20, 0)])
def test_what_a_large_pool_took_goes_back_to_the_system(
    monkeypatch: pytest.MonkeyPatch, leave: Callable[["KVCache"], object], large: int, times: int
) -> None:
    from finetune_inference.backends.transformers import kv_cache

    given_back: list[bool] = []
    monkeypatch.setattr(kv_cache, "LARGE_BYTES", large)
    cache = make()
    write(cache, 1, 10, 1.0)
    pool, _ = cache.place(1)
    monkeypatch.setattr(kv_cache, "release_free_memory", lambda: given_back.append(not pool.layers))
    leave(cache)
    assert given_back == [True] * times, "once, after the last reference is gone"

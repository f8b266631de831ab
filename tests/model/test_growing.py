"""The layer that grows in place against the library's, which copies everything at every step."""

from __future__ import annotations

import torch
from expertflow.tests.models.families import tiny_config
from expertflow.workers.model.growing_cache import CHUNK, GrowingLayer, capacity, new_cache
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer, LinearAttentionLayer


def states(rows: int, heads: int, columns: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    keys, values = (torch.randn(rows, heads, columns, width, generator=generator) for width in (4, 6))
    return keys, values


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(1, 3), st.integers(1, 3))
def test_holds_what_the_library_holds_after_any_history(data: st.DataObject, rows: int, heads: int) -> None:
    """Appending into room that is not there, or that another row owns, would overwrite a neighbour."""
    mine, library = GrowingLayer(), DynamicLayer()
    for seed in range(data.draw(st.integers(1, 8))):
        new = states(rows, heads, data.draw(st.sampled_from([1, 1, 1, 5, CHUNK - 1, CHUNK, 40])), seed)
        for returned, expected in zip(mine.update(*new), library.update(*new), strict=True):
            assert torch.equal(returned, expected)
        if data.draw(st.booleans()):
            _change(data, mine, library)
    assert mine.keys is not None
    assert library.keys is not None
    assert torch.equal(mine.keys, library.keys)
    assert mine.get_mask_sizes(1) == library.get_mask_sizes(1)


def _change(data: st.DataObject, *layers: DynamicLayer) -> None:
    """What rows.py does to tensors: narrow leaves a view that begins within its columns, the others leave no room."""
    assert layers[0].keys is not None
    first = data.draw(st.integers(0, layers[0].keys.shape[2] - 1))
    select = data.draw(st.booleans())
    for layer in layers:
        for name in ("keys", "values"):
            tensor = getattr(layer, name)
            narrowed = tensor.narrow(2, first, tensor.shape[2] - first)
            setattr(layer, name, narrowed.flip(0).index_select(0, torch.arange(len(tensor))) if select else narrowed)


def test_steps_within_a_chunk_move_nothing() -> None:
    """The point of it: the address stays while there is room."""
    layer = GrowingLayer()
    layer.update(*states(2, 2, 5, 0))
    assert layer.keys is not None
    first, addresses = layer.keys.data_ptr(), set()
    for step in range(CHUNK - 5):
        layer.update(*states(2, 2, 1, step))
        addresses.add(layer.keys.data_ptr())
    assert addresses == {first}
    layer.update(*states(2, 2, 1, 99))
    assert layer.keys.data_ptr() != first


def test_old_views_do_not_see_what_is_appended() -> None:
    layer = GrowingLayer()
    before, _ = layer.update(*states(2, 2, 5, 0))
    copied = before.clone()
    layer.update(*states(2, 2, 3, 1))
    assert torch.equal(before, copied)


def test_capacity_is_the_next_multiple() -> None:
    assert [capacity(columns) for columns in (0, 1, CHUNK, CHUNK + 1)] == [0, CHUNK, CHUNK, 2 * CHUNK]


def test_only_plain_layers_are_replaced() -> None:
    """Windows and linear states keep the library's own classes."""
    sliding, full, *_ = new_cache(tiny_config("gpt_oss")).layers
    assert (type(sliding), type(full)) == (DynamicSlidingWindowLayer, GrowingLayer)
    assert type(new_cache(tiny_config("qwen3_next")).layers[0]) is LinearAttentionLayer

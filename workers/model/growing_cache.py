"""A cache layer that grows in place.

The library's dynamic layer copies all keys and values at every step: at 32 rows of 512 positions that took four times
as long as the attention over them. This one leaves room for some columns and returns views of the same numbers.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

CHUNK = 32
"""Columns; capacities are multiples of it."""


class GrowingLayer(DynamicLayer):
    """DynamicLayer that grows in place. `keys` and `values` are views of tensors that may have room behind them."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append keys and values [rows, heads, new columns, width]; return both with all columns."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys, self.values = _append(self.keys, key_states), _append(self.values, value_states)
        return self.keys, self.values


def new_cache(config: PreTrainedConfig) -> DynamicCache:
    """Return the library's cache for this model, its plain dynamic layers replaced."""
    cache = _library_cache(config)
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def _library_cache(config: PreTrainedConfig) -> DynamicCache:
    text = config.get_text_config(decoder=True)
    if text.model_type != "minimax":
        return DynamicCache(config=config)
    from .families.minimax_cache import MiniMaxRowCache

    return MiniMaxRowCache(text)


def capacity(columns: int) -> int:
    """Return the number of columns allocated for `columns` used ones."""
    return -(-columns // CHUNK) * CHUNK


def _append(held: Tensor | None, new: Tensor) -> Tensor:
    if held is None or held.dim() != new.dim():
        return _with_room(new)
    length, columns = held.shape[2], new.shape[2]
    if _room(held) < columns:
        held = _with_room(held, columns)
    rows, heads, _, width = held.shape
    view = held.as_strided((rows, heads, length + columns, width), held.stride(), held.storage_offset())
    view[:, :, length:] = new
    return view


def _with_room(tensor: Tensor, columns: int = 0) -> Tensor:
    """Return a copy with room for at least `columns` more columns."""
    rows, heads, length, width = tensor.shape
    view = tensor.new_empty((rows, heads, capacity(length + columns), width))[:, :, :length]
    view.copy_(tensor)
    return view


def _room(tensor: Tensor) -> int:
    """Return the unused columns behind a view of [rows, heads, capacity, width]; 0 for any other tensor."""
    _, heads, length, width = tensor.shape
    row, head, column, one = (int(stride) for stride in tensor.stride())
    allocated = head // width
    if (row, column, one) != (heads * allocated * width, width, 1):
        return 0
    begin = int(tensor.storage_offset()) // width % allocated
    return allocated - begin - length

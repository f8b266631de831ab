"""Rows of a cache: take some, split, join two caches, trim columns that only hold padding. All are exact data moves.

Each *exact* layer class says here which of its tensors hold rows and along which dimension positions run. The library's
own row operations are not enough: they are missing for linear attention and forget recurrent states on hybrids. A class
that is not listed, or that has a tensor which is not listed, is refused.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.cache_utils import (
    Cache,
    DummyLayer,
    DynamicIndexedLayer,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
    LinearAttentionLayer,
)

from ...errors import CheckpointError
from .families.own_cache_layers import ATTENTION, Field, model_fields
from .growing_cache import GrowingLayer


class UnknownCacheLayer(CheckpointError):
    """State of a row that ExpertFlow cannot move: rows of this model only leave by masking, and none joins."""


_INDEXER = (Field("indexer_keys", position_dim=1), Field("indexer_position_ids", row_dim=1, position_dim=2))
_LINEAR = (Field("conv_states"), Field("recurrent_states"))

_FIELDS: dict[type, tuple[Field, ...]] = {
    DummyLayer: (),
    DynamicLayer: ATTENTION,
    GrowingLayer: ATTENTION,
    DynamicSlidingWindowLayer: ATTENTION,
    DynamicIndexedLayer: ATTENTION + _INDEXER,
    LinearAttentionLayer: _LINEAR,
    LinearAttentionAndFullAttentionLayer: _LINEAR + ATTENTION,
    LinearAttentionAndSlidingWindowAttentionLayer: _LINEAR + ATTENTION,
}

_CONSTANTS = frozenset({"_sliding_window_tensor"})
_FLAGS = ("is_initialized", "is_indexer_initialized", "is_conv_states_initialized", "is_recurrent_states_initialized",
          "has_previous_state", "conv_kernel_size", "sliding_window", "entry_count")  # fmt: skip


def require_known(cache: Cache) -> None:
    """Raise UnknownCacheLayer unless every layer of `cache` and all of its tensors are listed."""
    for index, layer in enumerate(cache.layers):
        _require_known_layer(layer, index)


def take(cache: Cache, rows: Sequence[int]) -> None:
    """Keep these rows, in this order. Raises UnknownCacheLayer before anything has changed."""
    require_known(cache)
    for index, layer in enumerate(cache.layers):
        cache.layers[index] = _take_rows(layer, rows)


def split(cache: Cache, rows: Sequence[int], rest: Sequence[int]) -> Cache:
    """Move `rows` to a new cache and keep `rest`; layer by layer, so that only one layer is held twice."""
    require_known(cache)
    other = copy.copy(cache)
    other.layers = []
    for index, layer in enumerate(cache.layers):
        other.layers.append(_take_rows(layer, rows))
        cache.layers[index] = _take_rows(layer, rest)
    return other


def join(cache: Cache, other: Cache) -> None:
    """Append the rows of `other`, whose layers are used up. The shorter one is padded on the left.

    So the newest position of every row is the last column, in sliding layers too, which keep only the newest.
    Raises UnknownCacheLayer before anything has changed.
    """
    require_known(cache)
    require_known(other)
    _require_alike(cache, other)
    for index in range(len(cache.layers)):
        cache.layers[index] = _join_layers(cache.layers[index], other.layers[index])
        other.layers[index] = DummyLayer()


def trim(cache: Cache, columns: int) -> None:
    """Drop the first `columns` columns, which must be padding in every row."""
    require_known(cache)
    for index, layer in enumerate(cache.layers):
        cache.layers[index] = _trim_columns(layer, columns)


def compact(cache: Cache) -> None:
    """Copy sliding windows out of the prompt-long tensors that the library leaves them in after a prefill."""
    for layer in cache.layers:
        if _fields(layer) is not None and getattr(layer, "is_sliding", False):
            set_tensors(layer, lambda tensor, field: tensor.clone() if _is_part(tensor) else tensor)


def cache_bytes(cache: Cache) -> int:
    """Return the bytes that the cache holds: storages, not views, each counted once."""
    storages = {}
    for layer in cache.layers:
        for tensor in _tensors_of(vars(layer), _CONSTANTS):
            storage = tensor.untyped_storage()
            storages[storage._cdata] = storage.nbytes()
    return sum(storages.values())


def layer_bytes(layer: Any) -> int:
    """Return the bytes of the states of one layer, views included."""
    return sum(tensor.nbytes for tensor in _tensors_of(vars(layer), _CONSTANTS))


def _take_rows(layer: Any, rows: Sequence[int]) -> Any:
    def select(tensor: Tensor, field: Field) -> Tensor:
        return tensor.index_select(field.row_dim, torch.tensor(rows, dtype=torch.long, device=tensor.device))

    return set_tensors(copy_layer(layer), select)


def _trim_columns(layer: Any, columns: int) -> Any:
    result = copy_layer(layer)
    if hasattr(layer, "cumulative_length"):
        result.cumulative_length -= columns
    # A full window still holds its newest positions when older columns, long gone from it, are trimmed.
    kept = _kept_columns(result)

    def narrow(tensor: Tensor, field: Field) -> Tensor:
        if field.position_dim is None:
            return tensor
        length = tensor.shape[field.position_dim]
        left = length - columns if kept is None else min(length, kept)
        return tensor.narrow(field.position_dim, length - left, left)

    return set_tensors(result, narrow)


def _join_layers(layer: Any, other: Any) -> Any:
    result = copy_layer(layer)
    for field in known_fields(layer):
        own, joining = getattr(layer, field.name), getattr(other, field.name)
        if isinstance(own, dict):
            joined: Any = {key: _append(own[key], joining[key], field) for key in own}
        else:
            joined = _append(own, joining, field)
        setattr(result, field.name, joined)
    if hasattr(layer, "cumulative_length"):
        result.cumulative_length = max(layer.cumulative_length, other.cumulative_length)
    return result


def _append(own: Tensor | None, joining: Tensor | None, field: Field) -> Tensor | None:
    if own is None or joining is None:
        return None
    if field.position_dim is not None:
        length = max(own.shape[field.position_dim], joining.shape[field.position_dim])
        own, joining = (pad_left(tensor, field.position_dim, length) for tensor in (own, joining))
    return torch.cat([own, joining], dim=field.row_dim)


def pad_left(tensor: Tensor, dim: int, length: int) -> Tensor:
    """Return the tensor with zeros before it along `dim`, so that it has `length` there."""
    missing = length - tensor.shape[dim]
    if missing == 0:
        return tensor
    after = tensor.dim() - 1 - dim
    return pad(tensor, (0, 0) * after + (missing, 0))


def _kept_columns(layer: Any) -> int | None:
    if not hasattr(layer, "cumulative_length"):
        return None
    return min(layer.cumulative_length, layer.sliding_window - 1)


def copy_layer(layer: Any) -> Any:
    """Return another layer with the same tensors, which can be replaced without changing this one."""
    result = copy.copy(layer)
    for name, value in vars(layer).items():
        if isinstance(value, dict):
            setattr(result, name, dict(value))
    return result


def set_tensors(layer: Any, change: Callable[[Tensor, Field], Tensor]) -> Any:
    """Replace every tensor of a layer that holds rows by what `change` makes of it; return the layer."""
    for field in known_fields(layer):
        value = getattr(layer, field.name)
        if isinstance(value, dict):
            changed = {key: None if tensor is None else change(tensor, field) for key, tensor in value.items()}
            setattr(layer, field.name, changed)
        elif value is not None:
            setattr(layer, field.name, change(value, field))
    return layer


def _fields(layer: Any) -> tuple[Field, ...] | None:
    return _FIELDS[type(layer)] if type(layer) in _FIELDS else model_fields(type(layer))


def known_fields(layer: Any) -> tuple[Field, ...]:
    """Return the tensors of a layer that hold rows; none for a class that is not listed."""
    return _fields(layer) or ()


def _require_known_layer(layer: Any, index: int) -> None:
    fields = _fields(layer)
    if fields is None:
        raise UnknownCacheLayer(
            f"rows of a {type(layer).__name__} cannot be moved",
            f"cache layer {index}",
            "Rows of this model cannot join a running unit",
        )
    names = {field.name for field in fields} | _CONSTANTS
    for name, value in vars(layer).items():
        if name not in names and any(True for _ in _tensors_of({name: value}, frozenset())):
            raise UnknownCacheLayer(
                f"{type(layer).__name__}.{name} is a state that this version does not know",
                f"cache layer {index}",
                "Use a version of transformers that ExpertFlow was tested with",
            )
    if getattr(layer, "record_past", False):
        raise UnknownCacheLayer(f"{type(layer).__name__} records its past", f"cache layer {index}")


def _require_alike(cache: Cache, other: Cache) -> None:
    if len(cache.layers) != len(other.layers):
        raise UnknownCacheLayer("caches of different models cannot be joined")
    for index, (layer, joining) in enumerate(zip(cache.layers, other.layers, strict=True)):
        same = type(layer) is type(joining) and _states(layer) == _states(joining) and _sizes(layer) == _sizes(joining)
        if not same:
            raise UnknownCacheLayer("states of the two caches differ in kind", f"cache layer {index}")


def _states(layer: Any) -> list[Any]:
    return [getattr(layer, name, None) for name in _FLAGS]


def _sizes(layer: Any) -> list[list[int]]:
    """Return the sizes of states that padding cannot make equal: all dimensions but the rows."""
    fixed = [field for field in known_fields(layer) if field.position_dim is None]
    states = [(field, state) for field in fixed for state in _tensors_of({0: getattr(layer, field.name)}, frozenset())]
    return [[size for dim, size in enumerate(state.shape) if dim != field.row_dim] for field, state in states]


def _tensors_of(values: dict[Any, Any], leave_out: frozenset[str]) -> Iterator[Tensor]:
    for name, value in values.items():
        if name in leave_out:
            continue
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, dict):
            yield from _tensors_of(value, leave_out)
        elif isinstance(value, (list, tuple)):
            yield from _tensors_of(dict(enumerate(value)), leave_out)


def _is_part(tensor: Tensor) -> bool:
    return tensor.untyped_storage().nbytes() > tensor.nbytes

"""Blocks of a row's cache: cut out of a row, and put together to the beginning of other rows. All exact data moves.

That is possible where every layer keeps all positions apart from each other. Windows and recurrent states hold what
came before in a form that cannot be cut.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from .cache_rows import copy_layer, known_fields, pad_left, require_known, set_tensors
from .families.own_cache_layers import Field


@dataclass(frozen=True)
class RowPrefix:
    """Beginning of a row that was computed before: the first `count` positions of `blocks`, caches of one row each."""

    blocks: Sequence[Cache] = ()
    count: int = 0


def may_cut(cache: Cache) -> bool:
    """Return whether blocks can be cut out of rows of this cache."""
    return all(
        not getattr(layer, "is_sliding", False) and all(field.position_dim is not None for field in known_fields(layer))
        for layer in cache.layers
    )


def cut(cache: Cache, row: int, begin: int, end: int) -> Cache:
    """Return a copy of the columns from `begin` up to `end` of one row. Raises UnknownCacheLayer."""
    require_known(cache)

    def select(tensor: Tensor, field: Field) -> Tensor:
        part = tensor.narrow(field.row_dim, row, 1).narrow(_position_dim(field), begin, end - begin)
        return part.clone(memory_format=torch.contiguous_format)

    return _with_layers(cache, [set_tensors(copy_layer(layer), select) for layer in cache.layers])


def shared_columns(prefixes: Sequence[RowPrefix], lengths: Sequence[int]) -> int:
    """Return the columns of a unit that prefixes fill: all but those that the longest rest of a row takes."""
    rest = max(length - prefix.count for length, prefix in zip(lengths, prefixes, strict=True))
    return max(lengths) - rest


def assemble(prefixes: Sequence[RowPrefix], columns: int, pads: Sequence[int]) -> Cache:
    """Return a cache of `columns` columns: in each row `pads` of padding, then the beginning of its prefix."""
    counts = [max(columns - pad, 0) for pad in pads]
    rows = [RowPrefix(prefix.blocks, count) for prefix, count in zip(prefixes, counts, strict=True)]
    some = next(block for row in rows for block in row.blocks)
    return _with_layers(some, [_assemble_layer(rows, columns, some, index) for index in range(len(some.layers))])


def _assemble_layer(rows: Sequence[RowPrefix], columns: int, some: Cache, index: int) -> object:
    def build(example: Tensor, field: Field) -> Tensor:
        parts = [_beginning(row, index, field, example, columns) for row in rows]
        return torch.cat(parts, dim=field.row_dim)

    return set_tensors(copy_layer(some.layers[index]), build)


def _beginning(row: RowPrefix, index: int, field: Field, example: Tensor, columns: int) -> Tensor:
    """Return one tensor of one row: its positions, padded on the left; `example` is that of any block."""
    dim = _position_dim(field)
    if not row.count:
        return pad_left(example.narrow(dim, 0, 0), dim, columns)
    blocks: list[Tensor] = [getattr(block.layers[index], field.name) for block in row.blocks]
    return pad_left(torch.cat(blocks, dim=dim).narrow(dim, 0, row.count), dim, columns)


def _position_dim(field: Field) -> int:
    if field.position_dim is None:
        raise ValueError(f"{field.name} has no positions")
    return field.position_dim


def _with_layers(cache: Cache, layers: list) -> Cache:
    other = copy.copy(cache)
    other.layers = layers
    return other

"""Blocks of prefixes that the scheduler had compute keep, and the beginnings of rows that are made of them."""

from __future__ import annotations

from typing import TypeAlias

import torch
from transformers.cache_utils import Cache

from ...ipc.messages import DropPrefix, KeepPrefix, RequestRow
from ..model.cache_blocks import RowPrefix
from ..model.cache_rows import cache_bytes
from ..model.unit import Unit

PrefixOrder: TypeAlias = KeepPrefix | DropPrefix


class PrefixStore:
    """Copies of parts of rows, by number."""

    def __init__(self) -> None:
        self._blocks: dict[int, Cache] = {}
        self.kv_bytes = 0

    def keep(self, order: KeepPrefix, unit: Unit) -> None:
        """Copy a row's positions into new blocks; only the first of them if a device's memory is short."""
        for index, number in enumerate(order.blocks):
            begin = order.begin + index * order.size
            try:
                block = unit.cut(order.row, begin, begin + order.size)
            except torch.OutOfMemoryError:
                return
            self._blocks[number] = block
            self.kv_bytes += cache_bytes(block)

    def drop(self, order: DropPrefix) -> None:
        """Drop blocks."""
        for number in order.blocks:
            if (block := self._blocks.pop(number, None)) is not None:
                self.kv_bytes -= cache_bytes(block)

    def clear(self) -> None:
        """Drop all blocks."""
        self._blocks.clear()
        self.kv_bytes = 0

    def prefix(self, row: RequestRow) -> RowPrefix:
        """Return the beginning of a row, as far as its blocks are here."""
        blocks: list[Cache] = []
        for number in row.blocks:
            if number not in self._blocks:
                return RowPrefix()
            blocks.append(self._blocks[number])
        return RowPrefix(blocks, row.cached)

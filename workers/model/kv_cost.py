"""Bytes of one row in a cache, measured on the real architecture on the meta device, which holds no numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedConfig

from .cache_rows import layer_bytes
from .dry_run import DryRun, dry_run
from .growing_cache import CHUNK, capacity

SMALL_WINDOW = 512
"""Up to here a sliding window counts as full from the start; wider ones count as growing with every position."""


@dataclass(frozen=True)
class KvCost:
    """Bytes of one row: `per_position_bytes * padded length + per_row_bytes` is never less than `bytes_of`."""

    per_position_bytes: int
    per_row_bytes: int
    growing_bytes: int
    """Bytes per padded position in layers that keep all positions."""
    windows: tuple[tuple[int, int], ...] = ()
    """Window and bytes per padded position of each sliding layer."""
    state_bytes: int = 0
    """Bytes that do not depend on the length: linear attention."""

    def bytes_of(self, rows: int, length: int) -> int:
        """Return the bytes of a cache of `rows` rows and `length` columns (hybrid and indexed layers: at most)."""
        sliding = sum(min(length, window) * size for window, size in self.windows)
        return rows * (self.growing_bytes * capacity(length) + sliding + self.state_bytes)


def kv_bytes(config: PreTrainedConfig, dtype: torch.dtype) -> KvCost:
    """Return the cost of a row of this model. Raises CheckpointError if its cache cannot be measured."""
    return cost_of(dry_run(config, dtype))


def cost_of(run: DryRun) -> KvCost:
    """Return the cost of a row of the model that was run."""
    (shorter, longer), (short, long) = run.lengths, run.cache_layers
    growing, state, windows = 0, 0, []
    for before, after in zip(short, long, strict=True):
        if getattr(after, "is_sliding", False):
            size = after.keys[:, :, :1].nbytes + after.values[:, :, :1].nbytes
            windows.append((after.sliding_window, size))
        held = [_bytes_outside_windows(layer) for layer in (before, after)]
        step = -(-(held[1] - held[0]) // (longer - shorter))
        growing += step
        state += max(held[0] - shorter * step, 0)
    wide = sum(size for window, size in windows if window > SMALL_WINDOW)
    narrow = sum(window * size for window, size in windows if window <= SMALL_WINDOW)
    spare = growing * (CHUNK - 1)
    return KvCost(growing + wide, spare + state + narrow, growing, tuple(windows), state)


def _bytes_outside_windows(layer: Any) -> int:
    """Return the bytes that a layer keeps for one row besides the keys and values of a sliding window."""
    window = layer.keys.nbytes + layer.values.nbytes if getattr(layer, "is_sliding", False) else 0
    return layer_bytes(layer) - window

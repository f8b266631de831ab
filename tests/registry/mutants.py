"""Mistakes that a trial must notice in every architecture."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from expertflow.ipc.messages import Cause
from expertflow.runtime.verify.local_runtime import LocalRuntime
from expertflow.workers.compute.experts import layer as expert_layers
from expertflow.workers.model import cache_rows as cache_rows


def stale_slots(runtime: LocalRuntime) -> None:
    """A slot that is filled a second time keeps what it held."""
    held: dict[int, tuple[int, int]] = {}
    honest = runtime._loader._fills.start

    def start(slot: int, layer: int, expert: int, urgent: bool, cause: Cause) -> None:
        stale = held.setdefault(slot, (layer, expert))
        honest(slot, *stale, urgent, cause)

    runtime._loader._fills.start = start  # pyright: ignore[reportAttributeAccessIssue]


def lost_waves(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the first expert of a call computes never arrives in the sum."""
    honest = expert_layers.run_expert
    calls = iter(range(10**9))

    def lossy(module: Any, weights: Any, rows: torch.Tensor, kernel: str = "") -> torch.Tensor:
        out = honest(module, weights, rows, kernel)
        return torch.zeros_like(out) if next(calls) % 5 == 0 else out

    monkeypatch.setattr(expert_layers, "run_expert", lossy)


def swapped_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rows get each other's states."""
    honest = cache_rows.take
    monkeypatch.setattr(
        cache_rows, "take", lambda cache, places: honest(cache, [*places[1:2], *places[:1], *places[2:]])
    )


def mask_off_by_one(runtime: LocalRuntime) -> None:
    """Every padded row sees one column of padding."""
    runtime._executor._model = _OneColumnOff(runtime.model)  # pyright: ignore[reportAttributeAccessIssue]


class _OneColumnOff:
    def __init__(self, model: Any) -> None:
        self.model, self.config = model, model.config

    def forward(self, attention_mask: torch.Tensor, logits_to_keep: int = 0, **inputs: Any) -> Any:
        width = attention_mask.shape[1]
        pads = width - attention_mask.sum(dim=1, keepdim=True)
        shifted = torch.arange(width) >= (pads - 1).clamp(min=0)
        return self.model(attention_mask=shifted.long(), logits_to_keep=logits_to_keep, **inputs)

    __call__ = forward

"""The input of one forward of a unit: ids, positions and mask, made from its rows."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .images import RowImages, StepImages, gather, place_positions
from .unit_rows import UnitRow


@dataclass(frozen=True)
class StepTokens:
    """Tokens of a forward, flattened in row-major order as its layers see them: N = rows in the cache * columns.

    `real` is bool [N] on the device of the inputs, or None if all are real. The lists have one entry a real token.
    """

    real: Tensor | None
    token_ids: list[int]
    rows: list[int]
    positions: list[int]
    indices: Tensor | None = None
    """int64 [real tokens], on the same device: index of each in [0, N); None if all are real."""

    @classmethod
    def of(
        cls, real: np.ndarray, device: torch.device | str, token_ids: list[int], rows: list[int], positions: list[int]
    ) -> StepTokens:
        """Build from `real` bool [rows, columns] on the host, so that no device has to be asked where tokens are."""
        if real.all():
            return cls(None, token_ids, rows, positions)
        flat = real.ravel()
        on_device = [torch.from_numpy(array).to(device) for array in (flat, np.flatnonzero(flat))]
        return cls(on_device[0], token_ids, rows, positions, on_device[1])


@dataclass(frozen=True)
class StepInput:
    """Input of one forward: ids and positions int64 [rows, columns], mask int64 [rows, columns cached afterwards].

    With images the positions of some models are [3, rows, columns].
    """

    input_ids: Tensor
    position_ids: Tensor
    attention_mask: Tensor
    tokens: StepTokens
    is_prefill: bool
    source_ids: Tensor | None = None
    """Ids for the encoder, int64 [rows, columns]; None without one, or once its output is cached."""
    source_tokens: StepTokens | None = None
    images: StepImages | None = None


def build_step_input(
    rows: Sequence[UnitRow], token_ids: list[list[int]], length: int, is_prefill: bool, device: torch.device | str
) -> StepInput:
    """Return the input for `token_ids` [rows, columns] of left-padded rows whose cache has `length` columns."""
    columns = len(token_ids[0])
    pads = torch.tensor([[row.pad] for row in rows])
    indices = torch.arange(length + columns)
    positions = (indices - pads).clamp(min=0)[:, length:]
    if not is_prefill:
        positions = positions + torch.tensor([[row.shift] for row in rows])
    mask = (indices >= pads).long()
    return StepInput(
        torch.tensor(token_ids).to(device),
        positions.to(device),
        mask.to(device),
        _step_tokens(rows, token_ids, length, device),
        is_prefill,
    )


def _step_tokens(
    rows: Sequence[UnitRow], token_ids: list[list[int]], length: int, device: torch.device | str
) -> StepTokens:
    columns = len(token_ids[0])
    hidden = [columns if row.gone else max(row.pad - length, 0) for row in rows]
    real = np.arange(columns) >= np.array(hidden)[:, None]
    start = [length - row.pad for row in rows]
    cells = [(index, column) for index, skip in enumerate(hidden) for column in range(skip, columns)]
    return StepTokens.of(
        real,
        device,
        [token_ids[index][column] for index, column in cells],
        [rows[index].number for index, _ in cells],
        [start[index] + column for index, column in cells],
    )


def with_images(step: StepInput, images: Sequence[RowImages | None], pads: Sequence[int]) -> StepInput:
    """Return the prefill with the images of its rows; `step` itself if there are none."""
    shown = gather(images, pads, step.input_ids.shape[1])
    if shown is None:
        return step
    return replace(
        step, position_ids=place_positions(step.position_ids, images, pads), images=shown.to(step.input_ids.device)
    )


def newest_logits_only(model: Any) -> dict[str, int]:
    """Return the option without which a prefill computes logits [rows, columns, vocabulary] that nobody reads."""
    has_option = "logits_to_keep" in inspect.signature(model.forward).parameters
    return {"logits_to_keep": 1} if has_option else {}

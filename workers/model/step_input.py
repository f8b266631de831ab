"""What one forward of a unit gets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from .images import RowImages, StepImages, gather, place_positions


@dataclass(frozen=True)
class StepTokens:
    """The tokens of a forward, flattened in row-major order as its layers see them: N = rows in the cache * columns.

    `real` is bool [N] on the device of the inputs, or None if all are real. The lists have one entry a real token.
    """

    real: Tensor | None
    token_ids: list[int]
    rows: list[int]
    positions: list[int]
    places: Tensor | None = None
    """int64 [real tokens], there too: where they are among all."""

    @classmethod
    def of(
        cls, real: np.ndarray, device: torch.device | str, token_ids: list[int], rows: list[int], positions: list[int]
    ) -> StepTokens:
        """`real` bool [rows, columns], on the host: no device has to be asked where the tokens are."""
        if real.all():
            return cls(None, token_ids, rows, positions)
        flat = real.ravel()
        on_device = [torch.from_numpy(each).to(device) for each in (flat, np.flatnonzero(flat))]
        return cls(on_device[0], token_ids, rows, positions, on_device[1])


@dataclass(frozen=True)
class StepInput:
    """What one forward gets: ids and positions int64 [rows, columns], mask int64 [rows, columns cached afterwards].

    With images the positions of some models are [3, rows, columns].
    """

    input_ids: Tensor
    position_ids: Tensor
    attention_mask: Tensor
    tokens: StepTokens
    is_prefill: bool
    source_ids: Tensor | None = None
    """What an encoder gets with it, int64 [rows, columns]."""
    source_tokens: StepTokens | None = None
    images: StepImages | None = None


def with_images(step: StepInput, images: Sequence[RowImages | None], pads: Sequence[int]) -> StepInput:
    """The same prefill with what its rows' images add; as it is if there are none."""
    shown = gather(images, pads, step.input_ids.shape[1])
    if shown is None:
        return step
    return replace(
        step, position_ids=place_positions(step.position_ids, images, pads), images=shown.to(step.input_ids.device)
    )

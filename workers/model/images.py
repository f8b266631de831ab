"""Images of rows in a prefill: which positions they take, and the model's own inputs for them.

The client has run the model's processor; what it made lies in a safetensors file (see ipc/shared/attachments.py). Which
positions are images is said by that file and never by token ids: a generated or a typed image token is a token.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ...errors import RequestError
from ...ipc.messages import RequestRow
from ...ipc.shared.attachments import TOKEN_TYPES, attachment_path, is_of_positions
from .architecture import WITH_IMAGES

IMAGE = 1
"""In a processor's `mm_token_type_ids`; 0 is text."""
_NO_ID = -1


@dataclass(frozen=True)
class RowImages:
    """The images of one row. `inputs` are the model's (`pixel_values`, `image_grid_thw`)."""

    inputs: dict[str, Tensor]
    types: dict[str, Tensor]
    """More inputs of the model, int64 [prompt]: how it treats each position (0: as text)."""
    shown: Tensor
    """bool [prompt]: the positions that hold images."""
    positions: Tensor | None
    """int64 [3, prompt]: time, height and width of each position (M-RoPE); None where the model counts in one
    dimension."""

    @property
    def shift(self) -> int:
        """What is added to the place of every later token: an image takes more tokens than it takes positions."""
        if self.positions is None:
            return 0
        return int(self.positions.max()) + 1 - self.positions.shape[1]


@dataclass(frozen=True)
class StepImages:
    """The images of all rows of a prefill: the model's inputs in the order of the rows, and where they go."""

    inputs: dict[str, Tensor]
    shown: Tensor
    """bool [rows, columns]."""

    def to(self, device: torch.device) -> StepImages:
        """The same on a device."""
        inputs = {name: value.to(device) for name, value in self.inputs.items()}
        return StepImages(inputs, self.shown.to(device))


def read_images(model: Any, row: RequestRow, folder: Path | None) -> RowImages | None:
    """What the client left for a row, if anything. Raises RequestError if it cannot be used."""
    if not row.attachment:
        return None
    if folder is None or model.config.model_type not in WITH_IMAGES:
        raise RequestError("this model takes no images", "prompt", "Leave out the images")
    try:
        stored = load_file(attachment_path(folder, row.attachment))
        types = stored.pop(TOKEN_TYPES)
    except (OSError, SafetensorError, KeyError) as error:
        raise RequestError(f"its images cannot be read ({error})", "prompt", "Submit the request again") from error
    if len(types) != len(row.token_ids) - row.generated:
        raise RequestError(f"has {len(types)} token types for its ids", "prompt", "Submit the request again")
    others = {name: stored.pop(name) for name in list(stored) if is_of_positions(name)}
    return RowImages(stored, others, types == IMAGE, _positions(model.base_model, types, stored))


def _positions(base: Any, types: Tensor, inputs: dict[str, Tensor]) -> Tensor | None:
    """By the model's own rule, for one row alone."""
    if not hasattr(base, "get_rope_index"):
        return None
    taken = inspect.signature(base.get_rope_index).parameters
    grids = {name: value for name, value in inputs.items() if name in taken}
    types = types[None]
    positions, _ = base.get_rope_index(torch.zeros_like(types), mm_token_type_ids=types, **grids)
    return positions[-3:, 0]


def gather(images: Sequence[RowImages | None], pads: Sequence[int], columns: int) -> StepImages | None:
    """The images of the rows of a left-padded prefill, None if no row has any."""
    present = [each for each in images if each is not None]
    if not present:
        return None
    names = dict.fromkeys(name for each in present for name in each.inputs)  # some only if an image is large
    inputs = {name: torch.cat([each.inputs[name] for each in present if name in each.inputs]) for name in names}
    for name in present[0].types:
        inputs[name] = _spread([each and each.types[name] for each in images], pads, columns)
    return StepImages(inputs, _spread([each and each.shown for each in images], pads, columns).bool())


def _spread(numbers: Sequence[Tensor | None], pads: Sequence[int], columns: int) -> Tensor:
    """Those of the prompts of left-padded rows, zero elsewhere: int64 [rows, columns]."""
    spread = torch.zeros(len(numbers), columns, dtype=torch.long)
    for place, (each, pad) in enumerate(zip(numbers, pads, strict=True)):
        if each is not None:
            spread[place, pad : pad + len(each)] = each
    return spread


def place_positions(positions: Tensor, images: Sequence[RowImages | None], pads: Sequence[int]) -> Tensor:
    """From places [rows, columns] of a prefill to positions [3, rows, columns]; unchanged if all have one dimension."""
    if all(each is None or each.positions is None for each in images):
        return positions
    positions = positions.expand(3, *positions.shape).clone()
    for place, (each, pad) in enumerate(zip(images, pads, strict=True)):
        if each is not None and each.positions is not None:
            end = pad + each.positions.shape[1]
            positions[:, place, pad:end] = each.positions
            positions[:, place, end:] += each.shift
    return positions


@contextmanager
def shown_to(model: Any, images: StepImages | None) -> Iterator[dict[str, Tensor]]:
    """The keyword arguments of a forward with these images; meanwhile the model is told where they go.

    Its own way, by token id, would take an image token that was generated (when a row is computed again) for an image:
    so it is asked about other ids.
    """
    if images is None:
        yield {}
        return
    base = model.base_model
    own, ids = base.get_placeholder_mask, torch.where(images.shown, base.config.image_token_id, _NO_ID)
    base.get_placeholder_mask = lambda input_ids, *args, **kwargs: own(ids, *args, **kwargs)
    try:
        yield images.inputs
    finally:
        del base.get_placeholder_mask

"""Images of rows in a prefill: which positions they take, and the model's own inputs for them.

The client has run the model's processor; what it made lies in a safetensors file (see ipc/shared/attachments.py). That
file says which positions are images. Token ids never do: a generated or a typed image token is a plain token.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
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
_SHOWN_IDS: ContextVar[Tensor | None] = ContextVar("shown_ids", default=None)
"""Ids of the forward that runs, int64 [rows, columns]. Forwards in lockstep have a value each, as
every greenlet has its own context."""


@dataclass(frozen=True)
class RowImages:
    """Images of one row. `inputs` are the model's (`pixel_values`, `image_grid_thw`)."""

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
        """Return the number added to the position of every later token: an image takes more tokens than positions."""
        if self.positions is None:
            return 0
        return int(self.positions.max()) + 1 - self.positions.shape[1]


@dataclass(frozen=True)
class StepImages:
    """Images of all rows of a prefill: the model's inputs in the order of the rows, and the positions they take."""

    inputs: dict[str, Tensor]
    shown: Tensor
    """bool [rows, columns]."""

    def to(self, device: torch.device) -> StepImages:
        """Return a copy on a device."""
        inputs = {name: value.to(device) for name, value in self.inputs.items()}
        return StepImages(inputs, self.shown.to(device))


def read_images(model: Any, row: RequestRow, folder: Path | None) -> RowImages | None:
    """Return the images that the client stored for a row, None if it has none. Raises RequestError if unusable."""
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
        what = f"has {len(types)} token types for the {len(row.token_ids) - row.generated} ids of its prompt"
        raise RequestError(what, "prompt", "Submit the request again")
    others = {name: stored.pop(name) for name in list(stored) if is_of_positions(name)}
    return RowImages(stored, others, types == IMAGE, _positions(model.base_model, types, stored))


def _positions(base: Any, types: Tensor, inputs: dict[str, Tensor]) -> Tensor | None:
    """Return int64 [3, prompt] by the model's own rule, for one row alone; None if it has no such rule."""
    if not hasattr(base, "get_rope_index"):
        return None
    taken = inspect.signature(base.get_rope_index).parameters
    grids = {name: value for name, value in inputs.items() if name in taken}
    types = types[None]
    positions, _ = base.get_rope_index(torch.zeros_like(types), mm_token_type_ids=types, **grids)
    return positions[-3:, 0]


def gather(images: Sequence[RowImages | None], pads: Sequence[int], columns: int) -> StepImages | None:
    """Join the images of the rows of a left-padded prefill; return None if no row has any."""
    present = [row for row in images if row is not None]
    if not present:
        return None
    names = dict.fromkeys(name for row in present for name in row.inputs)  # some only if an image is large
    inputs = {name: torch.cat([row.inputs[name] for row in present if name in row.inputs]) for name in names}
    for name in present[0].types:
        inputs[name] = _spread([row and row.types[name] for row in images], pads, columns)
    return StepImages(inputs, _spread([row and row.shown for row in images], pads, columns).bool())


def _spread(numbers: Sequence[Tensor | None], pads: Sequence[int], columns: int) -> Tensor:
    """Return the numbers of each prompt at the columns of its left-padded row, else zero: int64 [rows, columns]."""
    spread = torch.zeros(len(numbers), columns, dtype=torch.long)
    for index, (own, pad) in enumerate(zip(numbers, pads, strict=True)):
        if own is not None:
            spread[index, pad : pad + len(own)] = own
    return spread


def place_positions(positions: Tensor, images: Sequence[RowImages | None], pads: Sequence[int]) -> Tensor:
    """Return positions [3, rows, columns] of a prefill for models with M-RoPE, from `positions` [rows, columns].

    Returns `positions` itself if no image has positions in three dimensions.
    """
    if all(row is None or row.positions is None for row in images):
        return positions
    positions = positions.expand(3, *positions.shape).clone()
    for index, (row, pad) in enumerate(zip(images, pads, strict=True)):
        if row is not None and row.positions is not None:
            end = pad + row.positions.shape[1]
            positions[:, index, pad:end] = row.positions
            positions[:, index, end:] += row.shift
    return positions


@contextmanager
def image_inputs(model: Any, images: StepImages | None) -> Iterator[dict[str, Tensor]]:
    """Yield the keyword arguments of a forward with these images.

    Meanwhile `images.shown`, bool [rows, columns], says which positions they take. The model's own way goes by token
    id. It would take a generated image token, when a row is computed again, for an image. So its placeholder mask is
    computed from other ids.
    """
    if images is None:
        yield {}
        return
    base = model.base_model
    if "get_placeholder_mask" not in vars(base):
        base.get_placeholder_mask = partial(_placeholder_mask, base.get_placeholder_mask)
    token = _SHOWN_IDS.set(torch.where(images.shown, base.config.image_token_id, _NO_ID))
    try:
        yield images.inputs
    finally:
        _SHOWN_IDS.reset(token)


def _placeholder_mask(library: Callable[..., Any], input_ids: Tensor | None, *args: Any, **kwargs: Any) -> Any:
    """Call the library's method with the ids of the running forward's `image_inputs`, if there are any."""
    ids = _SHOWN_IDS.get()
    return library(input_ids if ids is None else ids, *args, **kwargs)

"""Views of expert slots as torch tensors, without a copy."""

from __future__ import annotations

import math

import numpy as np
import torch

from ...checkpoint.layout import tensor_positions
from ...checkpoint.survey import Survey

ExpertWeights = dict[str, torch.Tensor]
"""Parameter name (as in the experts module) -> the slice of one expert."""


class SlotViews:
    """What lies in a slot, given which expert it holds. `memory` is the slot arena, uint8, or memory of a device."""

    def __init__(self, memory: np.ndarray | torch.Tensor, survey: Survey) -> None:
        # from_numpy keeps the buffer's export alive: the map cannot be closed under a tensor.
        self._memory = torch.from_numpy(memory) if isinstance(memory, np.ndarray) else memory
        self._stride_bytes = survey.stride_bytes
        self._tensors, self._kind_of = survey.tensors, survey.kind_of
        positions = tensor_positions(survey)
        self._positions = positions.tolist()
        self.experts = survey.experts
        """In a layer."""
        fully_resident = survey.fully_resident(self._memory.numel() // survey.stride_bytes)
        self._uniform = survey.kinds == 1 and bool((positions == positions[0, 0]).all())
        """Every expert's tensors begin at the same places."""
        self._stackable = fully_resident and self._uniform
        self._stacks: dict[int, ExpertWeights] = {}
        self._views: dict[int, tuple[list[int], int, ExpertWeights]] = {}
        """By slot: where its tensors begin, their kind, and the views."""

    def weights(self, slot: int, layer: int, expert: int) -> ExpertWeights:
        """The weights of an expert that lies in `slot`.

        A slot's last views are kept, as making them costs more than a small matmul, and serve whichever expert lies
        there alike; all that ever were would be a leak.
        """
        positions, kind, found = self._positions[layer][expert], self._kind_of(expert), self._views.get(slot)
        if found is None or found[0] != positions or found[1] != kind:
            found = self._views[slot] = (positions, kind, self._make(slot, positions, kind))
        return found[2]

    def stack(self, layer: int) -> ExpertWeights | None:
        """[experts, ...] of a layer whose experts lie at home: expert e of layer l in slot l * experts + e.

        None if slots are too few for that, or tensors begin at other places in each.
        """
        if self._stackable and layer not in self._stacks:
            self._stacks[layer] = {
                tensor.name: self._stack(layer, position, tensor.shape, tensor.dtype)
                for tensor, position in zip(self._tensors, self._positions[0][0], strict=True)
            }
        return self._stacks.get(layer)

    def _stack(self, layer: int, position: int, shape: list[int], dtype: str) -> torch.Tensor:
        start = layer * self.experts * self._stride_bytes + position
        one = self._view(start, shape, dtype)
        size, strides = (self.experts, *shape), (self._stride_bytes // one.itemsize, *one.stride())
        return one.as_strided(size, strides, one.storage_offset())

    def _make(self, slot: int, positions: list[int], kind: int) -> ExpertWeights:
        base = slot * self._stride_bytes
        return {
            tensor.name: self._view(base + position, tensor.shape, tensor.dtype)
            for tensor, position in zip(self._tensors, positions, strict=True)
            if tensor.kind == kind
        }

    def _view(self, start: int, shape: list[int], dtype: str) -> torch.Tensor:
        kind: torch.dtype = getattr(torch, dtype)
        count = math.prod(shape) * kind.itemsize
        return self._memory[start : start + count].view(kind).view(shape)

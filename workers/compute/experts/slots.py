"""Views of expert slots as torch tensors, without a copy."""

from __future__ import annotations

import math

import numpy as np
import torch

from ....errors import EngineError
from ....ipc.shared.slot_references import SlotReferences
from ...checkpoint.layout import tensor_positions
from ...checkpoint.survey import Survey
from ...kernels.unpacking import ExpertWeights


class SlotViews:
    """Tensors in the slots, given which expert each holds. `memory`, uint8, is the slot arena or memory of a device."""

    def __init__(self, memory: np.ndarray | torch.Tensor, survey: Survey) -> None:
        # from_numpy keeps the buffer's export alive: the map cannot be closed under a tensor.
        self._memory = torch.from_numpy(memory) if isinstance(memory, np.ndarray) else memory
        self._stride_bytes = survey.stride_bytes
        self._tensors, self._kind_of = survey.tensors, survey.kind_of
        self._numbers = _tensor_numbers(survey)
        positions = tensor_positions(survey)
        self._positions = positions.tolist()
        self.experts = survey.experts
        """Number of experts in a layer."""
        fully_resident = survey.fully_resident(self._memory.numel() // survey.stride_bytes)
        self._uniform = survey.kinds == 1 and bool((positions == positions[0, 0]).all())
        """True if every expert's tensors begin at the same offsets."""
        self._packed = bool(survey.packings)
        self._stackable = fully_resident and self._uniform and not self._packed
        self._stacks: dict[int, ExpertWeights] = {}
        self._views: dict[int, tuple[list[int], list[int], ExpertWeights]] = {}
        """Slot → offsets of tensors, numbers of those that its expert has, and the views."""

    def weights(self, slot: int, layer: int, expert: int) -> ExpertWeights:
        """Return the weights of an expert that lies in `slot`.

        Caches the last views of each slot, since making them costs more than a small matmul. They serve every expert
        with the same offsets. Keeping more than one entry a slot would leak memory.
        """
        positions, numbers = self._positions[layer][expert], self._numbers[layer][self._kind_of(expert)]
        cached = self._views.get(slot)
        if cached is None or cached[0] != positions or cached[1] != numbers:
            cached = self._views[slot] = (positions, numbers, self._make_views(slot, positions, numbers))
        return cached[2]

    def stack(self, layer: int) -> ExpertWeights | None:
        """Return views [experts, ...] of a layer whose experts all lie in their home slots.

        The home slot of expert e in layer l is l * experts + e. Returns None if there are fewer slots than experts, if
        tensors begin at different offsets, or if experts are packed.
        """
        if self._stackable and layer not in self._stacks:
            self._stacks[layer] = {
                tensor.name: self._stack(layer, position, tensor.shape, tensor.dtype)
                for tensor, position in zip(self._tensors, self._positions[0][0], strict=True)
            }
        return self._stacks.get(layer)

    def _stack(self, layer: int, position: int, shape: list[int], dtype: str) -> torch.Tensor:
        start = layer * self.experts * self._stride_bytes + position
        first = self._view(start, shape, dtype)
        size, strides = (self.experts, *shape), (self._stride_bytes // first.itemsize, *first.stride())
        return first.as_strided(size, strides, first.storage_offset())

    def _make_views(self, slot: int, positions: list[int], numbers: list[int]) -> ExpertWeights:
        base, tensors = slot * self._stride_bytes, [self._tensors[number] for number in numbers]
        return {
            tensor.name: self._view(base + positions[number], tensor.shape, tensor.dtype)
            for number, tensor in zip(numbers, tensors, strict=True)
        }

    def _view(self, start: int, shape: list[int], dtype: str) -> torch.Tensor:
        torch_dtype: torch.dtype = getattr(torch, dtype)
        count_bytes = math.prod(shape) * torch_dtype.itemsize
        return self._memory[start : start + count_bytes].view(torch_dtype).view(shape)


def _tensor_numbers(survey: Survey) -> list[list[list[int]]]:
    """Return [layers, kinds], the numbers of the slot tensors that experts have."""
    firsts = [kind * survey.experts // survey.kinds for kind in range(survey.kinds)]
    return [[survey.tensors_of(layer, expert) for expert in firsts] for layer in range(survey.layers)]


class StoreViews(SlotViews):
    """Tensors of the experts in the host store that slots refer to. `store`, uint8, holds every expert."""

    def __init__(self, memory: np.ndarray, store: np.ndarray, survey: Survey) -> None:
        """Read the references of the slots in `memory`, uint8 [slots * REFERENCE_BYTES]."""
        super().__init__(store, survey)
        self._references = SlotReferences(memory)

    def weights(self, slot: int, layer: int, expert: int) -> ExpertWeights:
        """Return the weights of the expert that `slot` shows. Raises EngineError if it shows none (I3).

        Which one that is the slot alone decides, as with bytes that were copied into it.
        """
        key = self._references.key(slot)
        if key is None:
            what = f"slot {slot} was to be computed as expert {expert}, but no transfer into it has ended"
            raise EngineError(what, f"MoE layer {layer}", "Report this as a bug")
        return super().weights(key, *divmod(key, self.experts))

    def stack(self, layer: int) -> ExpertWeights | None:
        """Return views [experts, ...] of a layer, if its home slots show its experts."""
        return super().stack(layer) if self._references.are_home(layer * self.experts, self.experts) else None

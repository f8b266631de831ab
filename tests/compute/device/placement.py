"""`python -P placement.py MODE FOLDER…`: runs models on a device with shapes and no numbers (see test_placement.py).

A backend of Python's is that device, under torch's fake tensors. It is the whole process's, which is why it has one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from expertflow.ipc.messages import RequestRow, Sampling
from expertflow.workers.checkpoint.survey import Survey
from expertflow.workers.compute.device.grouped_layer import GroupedExpertsLayer
from expertflow.workers.compute.device.grouped_product import Groups, SlotMatrix
from expertflow.workers.compute.device.layer import DeviceExpertsLayer
from expertflow.workers.compute.experts.routing import RoutingCollector
from expertflow.workers.compute.skeleton import bind_layers, load_unbound
from expertflow.workers.model.encoder_decoder import new_unit
from expertflow.workers.model.families.base import OutsideExperts
from expertflow.workers.model.unit import RowAbilities, Unit
from expertflow.workers.surveyor.surveyor import survey_checkpoint
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "shapes"


class _Now:
    """A stream and an event in one: all is done at once."""

    def launch(self, kernel: Any) -> None:
        kernel()

    def record(self) -> _Now:
        return self


class ShapesDevice:
    """Answers what would be read back with numbers of its own."""

    kernels = _Now()

    def __init__(self, survey: Survey, where: torch.device) -> None:
        self._experts, self.torch_device = survey.experts, where
        self.read_back = 0

    def fetch(self, tensor: torch.Tensor) -> Callable[[], np.ndarray]:
        assert tensor.device.type == NAME

        def read() -> np.ndarray:
            self.read_back += 1
            experts = np.tile(np.arange(self._experts), (tensor.shape[0], 1))
            return np.random.default_rng(0).permuted(experts, axis=1)[:, : tensor.shape[1]]

        return read

    def upload(self, array: np.ndarray) -> torch.Tensor:
        return torch.empty(array.shape, dtype=torch.int64, device=self.torch_device)

    def join_kernels(self) -> None: ...

    def side_stream(self, after: Any) -> Any:
        return nullcontext()


class ShapesFeed:
    """Every expert is there; `knows_it`: it says so of whole layers, and routes need not be read back."""

    def __init__(self, survey: Survey, where: torch.device, knows_it: bool) -> None:
        self._survey, self._where, self._knows_it = survey, where, knows_it
        self._chosen: list[int] = []

    def enter(self, layer: int) -> list[int] | None:
        return list(range(self._survey.experts)) if self._knows_it else None

    def leave(self, routes: Any) -> None: ...

    def waves(self) -> Iterator[list[tuple[int, int]]]:
        yield [(expert, expert) for expert in self._chosen]

    @property
    def ready_count(self) -> int:
        return len(self._chosen)

    def begin(self, layer: int, experts: list[int]) -> None:
        self._chosen = experts

    def stream(self) -> Iterator[list[tuple[int, dict[str, torch.Tensor]]]]:
        for expert in self._chosen:
            kind = self._survey.kind_of(expert)
            own = [each for each in self._survey.tensors if each.kind == kind]
            yield [(expert, {each.name: _like(each.shape, getattr(torch, each.dtype), self._where) for each in own})]


class World:
    """A model of a family, as a device would run it."""

    def __init__(self, folder: Path, where: torch.device, grouped: bool, whole: bool) -> None:
        self.survey = survey_checkpoint(str(folder), dtype="bfloat16")
        self.routing = RoutingCollector(None, self.survey.layers)
        self.device = ShapesDevice(self.survey, where)
        self.model = load_unbound(self.survey)
        feed: Any = ShapesFeed(self.survey, where, whole)
        device: Any = self.device

        def layer_of(layer: int, module: Any) -> DeviceExpertsLayer:
            if not grouped or isinstance(module, OutsideExperts):
                return DeviceExpertsLayer(layer, feed, self.routing, device)
            tensors = {each.name: _slot_tensor(each.shape, module.is_transposed) for each in self.survey.tensors}
            return GroupedExpertsLayer(layer, feed, self.routing, device, _no_product, tensors)

        bind_layers(self.model, layer_of)

    def move(self) -> None:
        """What `Module.to` does."""
        where = self.device.torch_device
        for module in self.model.modules():
            for name, own in module._parameters.items():
                if own is not None:
                    moved = _like(own.shape, own.dtype, where)
                    module._parameters[name] = torch.nn.Parameter(moved, requires_grad=False)
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = _like(buffer.shape, buffer.dtype, where)

    def prefill(self, first: int, lengths: list[int]) -> Unit:
        unit = new_unit(self.model.config, RowAbilities.of(self.survey.rows), self.device.torch_device)
        rows = [RequestRow(first + place, [5] * length, 0, Sampling()) for place, length in enumerate(lengths)]
        self._run(unit, unit.prepare_prefill(rows))
        return unit

    def step(self, unit: Unit) -> None:
        self._run(unit, unit.prepare_step())

    def _run(self, unit: Unit, step: Any) -> None:
        self.routing.begin(step.tokens, step.source_tokens)
        assert unit.run(self.model, step).device.type == NAME
        unit.append([3] * len(unit.rows))


def _like(shape: Any, dtype: torch.dtype, where: torch.device) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device=where)


@contextmanager
def shapes_only() -> Iterator[None]:
    """Torch keeps the numbers of tensors that were written out, and a device without numbers could not take them."""
    written = torch.tensor

    def tensor(data: Any, dtype: Any = None, device: Any = None) -> torch.Tensor:
        like = written(data, dtype=dtype)
        return torch.empty(like.shape, dtype=like.dtype, device=device)

    torch.tensor = tensor
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), torch.inference_mode():
            yield
    finally:
        torch.tensor = written


def _no_product(rows: torch.Tensor, weights: SlotMatrix, groups: Groups, out: torch.Tensor, first: int = 0) -> None:
    """There are no numbers to multiply."""


def _slot_tensor(shape: list[int], transposed: bool) -> SlotMatrix:
    return SlotMatrix(torch.empty(0), 1, 0, (shape[0], shape[-1]), transposed)


def check(folder: Path, where: torch.device, grouped: bool, whole: bool) -> None:
    """Prefill with pads, decode, join, drop, split."""
    world = World(folder, where, grouped, whole)
    with shapes_only():
        world.move()
        unit, other = world.prefill(0, [4, 2]), world.prefill(2, [3, 3])
        world.step(unit)
        unit.join(other)
        world.step(unit)
        unit.drop([1])
        world.step(unit)
        world.step(unit.split([0]))
    assert world.device.read_back == (0 if whole else 6 * world.survey.layers)


def main() -> None:
    torch.set_num_threads(1)
    _setup_privateuseone_for_python_backend(NAME)
    grouped, whole = (word in sys.argv[1].split(",") for word in ("grouped", "whole"))
    for folder in sys.argv[2:]:
        check(Path(folder), torch.device(NAME, 0), grouped, whole)


if __name__ == "__main__":
    main()

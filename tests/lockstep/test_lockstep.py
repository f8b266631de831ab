"""Forwards in lockstep: layers are computed once for all, errors stay with their row, nothing stays suspended."""

from __future__ import annotations

import gc
from collections.abc import Callable

import greenlet
import pytest
import torch
from expertflow.workers.compute.experts.residency import ComputeStopped
from expertflow.workers.compute.lockstep.lockstep import LayerCall, Lockstep
from torch import Tensor

Compute = Callable[[list[LayerCall]], list[Tensor]]


def suspended() -> list[greenlet.greenlet]:
    """Greenlets that have begun and not ended, but for the one that asks."""
    every = [each for each in gc.get_objects() if issubclass(type(each), greenlet.greenlet)]
    return [each for each in every if each and each is not greenlet.getcurrent()]


class Model:
    """Three layers that add one; `seen` are the layers, each with the number of rows that were computed together."""

    def __init__(self) -> None:
        self.lockstep = Lockstep()
        self.seen: list[tuple[int, int]] = []
        self.cleaned: list[float] = []

    def compute(self, calls: list[LayerCall]) -> list[Tensor]:
        assert not self.lockstep.in_forward
        self.seen.append((calls[0].layer, len(calls)))
        return [call.hidden + 1 for call in calls]

    def forward(self, start: float, layers: int = 3, fails_after: int | None = None) -> Tensor:
        hidden = torch.tensor([[start]])
        try:
            for layer in range(layers):
                assert self.lockstep.in_forward
                if layer == fails_after:
                    raise ValueError(f"row {start}")
                call = LayerCall(layer, self.compute, hidden, hidden, hidden)
                hidden = self.lockstep.wait_for_layer(call)
        finally:
            self.cleaned.append(start)
        return hidden


def test_every_layer_is_computed_once_for_all_rows() -> None:
    model = Model()
    results = model.lockstep.run([lambda start=start: model.forward(start) for start in (0.0, 10.0, 20.0)])
    assert [result.item() for result in results if isinstance(result, Tensor)] == [3, 13, 23]
    assert model.seen == [(0, 3), (1, 3), (2, 3)]
    assert not model.lockstep.in_forward and suspended() == []


def test_a_row_alone_runs_in_lockstep_too() -> None:
    model = Model()
    (result,) = model.lockstep.run([lambda: model.forward(5.0)])
    assert isinstance(result, Tensor) and result.item() == 8


def test_an_error_of_one_row_leaves_the_others_undisturbed() -> None:
    model = Model()
    forwards = [lambda: model.forward(0.0), lambda: model.forward(1.0, fails_after=1), lambda: model.forward(2.0)]
    first, second, third = model.lockstep.run(forwards)
    assert isinstance(second, ValueError)
    assert isinstance(first, Tensor) and isinstance(third, Tensor)
    assert (first.item(), third.item()) == (3, 5)
    assert model.seen == [(0, 3), (1, 2), (2, 2)] and suspended() == []


def test_rows_that_need_more_forwards_go_on_alone() -> None:
    """A row that is computed again runs its prompt and then token by token; the others have ended by then."""
    model = Model()

    def twice() -> Tensor:
        model.forward(0.0)
        return model.forward(1.0)

    model.lockstep.run([twice, lambda: model.forward(2.0)])
    assert model.seen == [(0, 2), (1, 2), (2, 2), (0, 1), (1, 1), (2, 1)]


@pytest.mark.parametrize("error", [ComputeStopped(), RuntimeError("an expert never arrived")])
def test_an_error_of_a_layer_ends_all_rows(error: BaseException) -> None:
    """Their `finally` blocks run, and the next step begins as if nothing had happened."""
    model = Model()
    whole = model.compute

    def broken(calls: list[LayerCall]) -> list[Tensor]:
        if calls[0].layer == 1:
            raise error
        return whole(calls)

    model.compute = broken
    with pytest.raises(type(error)):
        model.lockstep.run([lambda: model.forward(0.0), lambda: model.forward(1.0)])
    assert model.cleaned == [0.0, 1.0] and suspended() == []
    model.compute = whole
    assert len(model.lockstep.run([lambda: model.forward(0.0)])) == 1


def test_a_forward_that_swallows_its_end_is_ended_all_the_same() -> None:
    model = Model()

    def stubborn() -> Tensor:
        for _ in range(3):
            try:
                model.forward(0.0)
            except BaseException:  # noqa: BLE001 - what a library might do
                continue
        return torch.zeros(1)

    def broken(calls: list[LayerCall]) -> list[Tensor]:
        raise RuntimeError

    model.compute = broken
    with pytest.raises(RuntimeError):
        model.lockstep.run([stubborn, lambda: model.forward(1.0)])
    assert suspended() == []

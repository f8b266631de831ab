"""Runs the forwards of several rows in lockstep, layer by layer: each has the shapes that it has alone (I1d).

Each forward is a greenlet. It runs until it calls an experts layer, where it waits for the others. The layer is then
computed once for all of them, and each goes on with its own result. All greenlets share one thread of the system,
because every further thread would get a pool of kernel threads of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from greenlet import GreenletExit, getcurrent, greenlet
from torch import Tensor

Forward = Callable[[], Tensor]
"""Runs one row, and returns its logits [1, vocabulary]."""

Watch = Callable[[int, int, Tensor], None]
"""Called with the index of a forward, a layer, and the routes [positions, top-k] that the forward has there."""


@dataclass(frozen=True, slots=True, eq=False)
class LayerCall:
    """Call of an experts layer by the forward of one row; shapes as in `ExpertsLayer.forward`."""

    layer: int
    compute: Callable[[list[LayerCall]], list[Tensor]]
    """Computes the calls of several rows; returns a result [positions, width] for each."""
    hidden: Tensor
    index: Tensor
    weights: Tensor


class Lockstep:
    """Runs forwards in lockstep, and is the place where they wait for each other."""

    def __init__(self) -> None:
        self._hub: greenlet | None = None
        """The greenlet that runs the layers; None while nothing runs in lockstep."""

    @property
    def in_forward(self) -> bool:
        """Return whether the caller is part of a forward that runs in lockstep."""
        return self._hub is not None and getcurrent() is not self._hub

    def wait_for_layer(self, call: LayerCall) -> Tensor:
        """Suspend the calling forward until its layer is computed for all rows; return its part [positions, width]."""
        if self._hub is None:
            raise RuntimeError("no forward runs in lockstep")
        return self._hub.switch(call)

    def run(self, forwards: Sequence[Forward], watch: Watch | None = None) -> list[Tensor | Exception]:
        """Run forwards to their end; return the logits [1, vocabulary] or the error of each, in their order.

        An error of one forward does not disturb the others. An error of a layer, which all share, is raised. No
        forward stays suspended in any case. `watch` is told of every layer that a forward comes to.
        """
        rows = [_RowForward(forward) for forward in forwards]
        self._hub = getcurrent()
        try:
            for row in rows:
                row.resume()
            while calls := _next_calls(rows):
                if watch is not None:
                    for row, call in calls:
                        watch(rows.index(row), call.layer, call.index)
                results = calls[0][1].compute([call for _, call in calls])
                for (row, _), result in zip(calls, results, strict=True):
                    row.resume(result)
            return [row.outcome for row in rows]
        finally:
            for row in rows:
                row.end()
            self._hub = None


class _RowForward:
    """One row's forward: suspended at a layer (`call`), or ended (`outcome`)."""

    def __init__(self, forward: Forward) -> None:
        self._greenlet = greenlet(forward)
        self.call: LayerCall | None = None
        self.outcome: Tensor | Exception = RuntimeError("the forward has not ended")

    def resume(self, *result: Tensor) -> None:
        """Run until the next layer or the end; `result` is that of the layer at which the forward waits."""
        self.call = None
        try:
            answer = self._greenlet.switch(*result)
        except Exception as error:  # noqa: BLE001 - whatever one row causes, the others go on
            self.outcome = error
            return
        if self._greenlet.dead:
            self.outcome = answer
        else:
            self.call = answer

    def end(self) -> None:
        """End a forward that is suspended; its `finally` blocks run."""
        self.call = None
        while not self._greenlet.dead:
            with suppress(Exception):
                self._greenlet.throw(GreenletExit)


def _next_calls(rows: list[_RowForward]) -> list[tuple[_RowForward, LayerCall]]:
    """Return the calls of the first layer at which rows wait; empty if all rows have ended.

    Rows come to the same layers in the same order, unless some are computed again and need more forwards.
    """
    waiting = [(row, row.call) for row in rows if row.call is not None]
    first = min((call.layer for _, call in waiting), default=None)
    return [(row, call) for row, call in waiting if call.layer == first]

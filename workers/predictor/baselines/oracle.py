"""Knows the routing because the same requests were run before: the bound of what prediction can give."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from ....ipc.messages import PredictStep, StepRouting
from ...traces.routing import read_routing
from ..base.forecaster import Forecaster, Part, chunks


class Oracle(Forecaster):
    """Looks routes up by row number and position; what was not recorded is not foreseen."""

    def __init__(self, layers: int, experts: int, recording: Iterable[StepRouting]) -> None:
        super().__init__(layers, experts)
        self._routes: dict[tuple[int, int], np.ndarray] = {}
        """(row, position) → uint16 [layers, top_k]."""
        for used in recording:
            self._remember(used)

    def _remember(self, used: StepRouting) -> None:
        routing = read_routing(used, self._layers, self._experts)
        if routing is not None:
            self._routes.update(zip(zip(used.rows, used.positions, strict=False), routing, strict=False))

    def parts(self, coming: PredictStep) -> Iterator[Part]:
        """1 for every expert that a token used when it was recorded, else 0."""
        for places in chunks(len(coming.token_ids)):
            yield places, np.stack([self._of(coming.rows[place], coming.positions[place]) for place in places.tolist()])

    def _of(self, row: int, position: int) -> np.ndarray:
        certain = np.zeros((self._layers, self._experts), dtype=np.float32)
        if (route := self._routes.get((row, position))) is not None:
            np.put_along_axis(certain, route.astype(np.int64), 1.0, axis=1)
        return certain

    def learn(self, used: StepRouting) -> None:
        """An oracle has nothing to learn."""

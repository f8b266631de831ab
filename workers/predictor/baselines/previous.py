"""Expects of every row what its previous token used: the paper's TLP baseline (arXiv 2410.17954, §4.2.1)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ....ipc.messages import PredictStep, StepRouting
from ...traces.routing import read_routing
from ..base.forecaster import Forecaster, Part, chunks
from ..base.lru import LruDict

REMEMBERED_ROWS = 4096


class Previous(Forecaster):
    """Repeats the routing of the token before; a row that was not seen, or a jump, is expected to use any expert."""

    follows_rows = True

    def __init__(self, layers: int, experts: int, top_k: int) -> None:
        super().__init__(layers, experts)
        self._anything = np.full((layers, experts), top_k / experts, dtype=np.float32)
        self._last: LruDict[tuple[int, np.ndarray]] = LruDict(REMEMBERED_ROWS)
        """Row → position and routing [layers, top_k] of its last token."""

    def parts(self, coming: PredictStep) -> Iterator[Part]:
        for places in chunks(len(coming.token_ids)):
            chosen = places.tolist()
            yield places, np.stack([self._of(coming.rows[place], coming.positions[place]) for place in chosen])

    def _of(self, row: int, position: int) -> np.ndarray:
        seen, routing = self._last.get(row) or (-2, None)
        if routing is None or seen != position - 1:
            return self._anything
        certain = np.zeros_like(self._anything)
        np.put_along_axis(certain, routing.astype(np.int64), 1.0, axis=1)
        return certain

    def learn(self, used: StepRouting) -> None:
        routing = read_routing(used, self._layers, self._experts)
        if routing is None:
            return
        for row, position, route in zip(used.rows, used.positions, routing, strict=False):
            self._last[row] = position, route.copy()

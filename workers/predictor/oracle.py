"""Knows the routing because the same requests were run before: the bound of what prediction can give."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ...ipc.messages import Forecast, Used
from ..routing import read_routing


class Oracle:
    """Looks routes up by row number and position; what was not recorded is not foreseen."""

    def __init__(self, layers: int, experts: int, recording: Iterable[Used]) -> None:
        self._layers, self._experts = layers, experts
        self._routes: dict[tuple[int, int], np.ndarray] = {}
        """(row, position) → uint16 [layers, top_k]."""
        for used in recording:
            self._remember(used)

    def _remember(self, used: Used) -> None:
        routing = read_routing(used, self._layers, self._experts)
        if routing is not None:
            self._routes.update(zip(zip(used.rows, used.positions, strict=False), routing, strict=False))

    def forecast(self, coming: Forecast) -> np.ndarray:
        """float32 [layers, experts]: 1 for every expert that a token of the step used when it was recorded, else 0."""
        routes = self.routes(coming)
        return routes.max(axis=0) if len(routes) else np.zeros((self._layers, self._experts), dtype=np.float32)

    def routes(self, coming: Forecast) -> np.ndarray:
        """float32 [tokens, layers, experts]: the same for each token."""
        certain = np.zeros((len(coming.token_ids), self._layers, self._experts), dtype=np.float32)
        for token, place in enumerate(zip(coming.rows, coming.positions, strict=False)):
            if (route := self._routes.get(place)) is not None:
                certain[token, np.arange(self._layers)[:, None], route] = 1.0
        return certain

    def learn(self, used: Used) -> None:
        """An oracle has nothing to learn."""

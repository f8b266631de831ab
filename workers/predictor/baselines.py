"""Predictors to compare with: simple ones, an upper bound, and two that are wrong on purpose."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from ...ipc.messages import PredictStep, StepRouting
from ..traces.routing import read_routing
from .base.forecaster import Forecaster, Part, chunks
from .base.lru import LruDict, LruLines
from .base.token_table import expert_keys

REMEMBERED_ROWS = 4096
REMEMBERED_REQUESTS = 256


class Everything(Forecaster):
    """Predict every expert of every layer with certainty: what SE-MoE's ring of layers loads (arXiv 2205.10034)."""

    def parts(self, request: PredictStep) -> Iterator[Part]:
        for indices in chunks(len(request.token_ids)):
            yield indices, np.ones((len(indices), self._layers, self._experts), dtype=np.float32)

    def learn(self, routing: StepRouting) -> None:
        """Ignore the routing."""


class Previous(Forecaster):
    """Predict the experts of a row's previous token: the paper's TLP baseline (arXiv 2410.17954, §4.2.1).

    Where the routing of the token just before is unknown, all experts are equally likely.
    """

    follows_rows = True

    def __init__(self, layers: int, experts: int, top_k: int) -> None:
        super().__init__(layers, experts)
        self._uniform = np.full((layers, experts), top_k / experts, dtype=np.float32)
        self._last: LruDict[tuple[int, np.ndarray]] = LruDict(REMEMBERED_ROWS)
        """Row → position and routes [layers, top_k] of its last token."""

    def parts(self, request: PredictStep) -> Iterator[Part]:
        for indices in chunks(len(request.token_ids)):
            tokens = [(request.rows[index], request.positions[index]) for index in indices.tolist()]
            yield indices, np.stack([self._predict(row, position) for row, position in tokens])

    def _predict(self, row: int, position: int) -> np.ndarray:
        last_position, route = self._last.get(row) or (-2, None)
        if route is None or last_position != position - 1:
            return self._uniform
        return certain_of(route, self._experts)

    def learn(self, routing: StepRouting) -> None:
        routes = read_routing(routing, self._layers, self._experts)
        if routes is None:
            return
        for row, position, route in zip(routing.rows, routing.positions, routes, strict=False):
            self._last[row] = position, route.copy()


class ActivationMatrixForecaster(Forecaster):
    """Match expert activation matrices of whole requests: MoE-Infinity (arXiv 2401.14361).

    It counts for each request how often its tokens used each expert, and predicts the counts of the most similar
    request. Similarity is the cosine of the counts, as in the source. The store is bounded: the request that was not
    seen for longest makes room. For a request without counts it predicts the counts of all others.
    """

    follows_rows = True

    def __init__(self, layers: int, experts: int, top_k: int, requests: int = REMEMBERED_REQUESTS) -> None:
        super().__init__(layers, experts)
        self._counts = np.zeros((requests, layers * experts), dtype=np.float32)
        self._tokens = np.zeros(requests, dtype=np.float32)
        self._lines = LruLines(requests)
        """Row → its line in the two arrays."""
        self._uniform = top_k / experts

    def parts(self, request: PredictStep) -> Iterator[Part]:
        rows = np.array(request.rows, dtype=np.int64)
        predicted = {row: self._predict(row).reshape(self._layers, self._experts) for row in set(request.rows)}
        for indices in chunks(len(rows)):
            yield indices, np.stack([predicted[row] for row in rows[indices].tolist()])

    def _predict(self, row: int) -> np.ndarray:
        line = self._lines.find(row)
        others = self._tokens > 0
        if line >= 0:
            others[line] = False
        if not others.any():
            return np.full(self._counts.shape[1], self._uniform, dtype=np.float32)
        if line < 0:
            return self._counts[others].sum(axis=0) / self._tokens[others].sum()
        nearest = np.flatnonzero(others)[np.argmax(self._similarity(line)[others])]
        return self._counts[nearest] / self._tokens[nearest]

    def _similarity(self, line: int) -> np.ndarray:
        """Return the cosine of this line and every line, times a factor that all share."""
        lengths = np.linalg.norm(self._counts, axis=1)
        return self._counts @ self._counts[line] / np.maximum(lengths, 1e-9)

    def learn(self, routing: StepRouting) -> None:
        routes = read_routing(routing, self._layers, self._experts)
        if routes is None:
            return
        keys = expert_keys(routes, self._experts)
        rows = np.array(routing.rows, dtype=np.int64)[: len(routes)]
        for row in dict.fromkeys(rows.tolist()):
            of_row = rows == row
            line = self._open_line(row)
            self._counts[line] += np.bincount(keys[of_row].ravel(), minlength=self._counts.shape[1])
            self._tokens[line] += of_row.sum()

    def _open_line(self, row: int) -> int:
        line, fresh = self._lines.open(row)
        if fresh:
            self._counts[line] = 0
            self._tokens[line] = 0
        return line


class Oracle(Forecaster):
    """Predict recorded routing of the same requests: the upper bound of prediction.

    It finds a token by row number and position. It predicts no expert for a token that was not recorded.
    """

    def __init__(self, layers: int, experts: int, recording: Iterable[StepRouting]) -> None:
        super().__init__(layers, experts)
        self._routes: dict[tuple[int, int], np.ndarray] = {}
        """(row, position) → uint16 [layers, top_k]."""
        for routing in recording:
            self._remember(routing)

    def _remember(self, routing: StepRouting) -> None:
        routes = read_routing(routing, self._layers, self._experts)
        if routes is not None:
            self._routes.update(zip(zip(routing.rows, routing.positions, strict=False), routes, strict=False))

    def parts(self, request: PredictStep) -> Iterator[Part]:
        for indices in chunks(len(request.token_ids)):
            tokens = [(request.rows[index], request.positions[index]) for index in indices.tolist()]
            yield indices, np.stack([self._predict(row, position) for row, position in tokens])

    def _predict(self, row: int, position: int) -> np.ndarray:
        route = self._routes.get((row, position))
        if route is None:
            return np.zeros((self._layers, self._experts), dtype=np.float32)
        return certain_of(route, self._experts)

    def learn(self, routing: StepRouting) -> None:
        """Ignore the routing."""


class Noise(Forecaster):
    """Predict uniform random probabilities, a function of seed and step; all tokens of a step have the same ones.

    Wrong predictions must not change results (I2).
    """

    def __init__(self, layers: int, experts: int, seed: int) -> None:
        super().__init__(layers, experts)
        self._seed = seed

    def forecast(self, request: PredictStep) -> np.ndarray:
        """Return float32 [layers, experts], uniform in 0 to 1."""
        rng = np.random.default_rng([self._seed, max(request.step, 0)])
        return rng.random((self._layers, self._experts), dtype=np.float32)

    def parts(self, request: PredictStep) -> Iterator[Part]:
        drawn = self.forecast(request)
        for indices in chunks(len(request.token_ids)):
            yield indices, np.broadcast_to(drawn, (len(indices), *drawn.shape))

    def learn(self, routing: StepRouting) -> None:
        """Ignore the routing."""


class Opposite(Forecaster):
    """Predict the complement of an honest predictor: likely experts become unlikely (I2)."""

    def __init__(self, honest: Forecaster) -> None:
        self._honest = honest

    def forecast(self, request: PredictStep) -> np.ndarray:
        """Return 1 − the honest forecast, float32 [layers, experts]."""
        return np.float32(1.0) - self._honest.forecast(request)

    def forecast_tokens(self, request: PredictStep) -> np.ndarray:
        """Return 1 − the honest forecast, float32 [tokens, layers, experts]."""
        return np.float32(1.0) - self._honest.forecast_tokens(request)

    def parts(self, request: PredictStep) -> Iterator[Part]:
        for indices, probabilities in self._honest.parts(request):
            yield indices, np.float32(1.0) - probabilities

    def learn(self, routing: StepRouting) -> None:
        self._honest.learn(routing)


def certain_of(route: np.ndarray, experts: int) -> np.ndarray:
    """Return float32 [layers, experts]: 1 for the experts of `route` [layers, top_k], 0 for the others."""
    certain = np.zeros((len(route), experts), dtype=np.float32)
    np.put_along_axis(certain, route.astype(np.int64), 1.0, axis=1)
    return certain

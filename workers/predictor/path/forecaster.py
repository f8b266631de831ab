"""The routing path predictor: predicts tokens from their ids and the routing of the tokens before them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ....errors import UsageError
from ....ipc.messages import PredictStep, StepRouting
from ...traces.routing import read_routing
from ..base.forecaster import CHUNK_TOKENS, Forecaster, Part
from ..base.model_shape import ModelShape
from ..base.predictor_file import REMEDY, check_belongs
from ..base.token_table import expert_keys, smooth
from ..base.vocabulary import Spelling, tokenizer_spelling
from .file import PathFile, read_path
from .history import NOWHERE, RecentRouting, RequestedTokens, RoutedTokens, RowHistories, TokenHistory
from .lexicon import Lexicon
from .network import Network, TokenFeatures

REMEMBERED_VECTORS = 4096
_TRIAL = PredictStep(step=0, token_ids=[0, 0, 1], rows=[0, 1, 1], positions=[0, 0, 1])
"""One row in decode, and one of two tokens in a prefill."""
PRIOR_TOKENS = np.float32(1.0)
"""Weight of popularity in the token table, in sightings."""


class PathForecaster(Forecaster):
    """Predicts from a trained file and keeps a bounded history of every row.

    In decode it uses the routing of all earlier tokens of a row. Tokens that run together with those before them, as in
    a prefill, are predicted without; so is a row whose history is missing.
    """

    follows_rows = True

    def __init__(self, file: PathFile, spelling: Spelling | None = None, adapts: bool = True) -> None:
        """`adapts`: the token table goes on counting."""
        shape = file.header.shape
        super().__init__(shape.layers, shape.experts)
        self._shape, self._adapts = shape, adapts
        self._network = Network(shape, file.weights)
        self._lexicon = Lexicon(file.table, shape.grams, spelling)
        popularity = self._network.popularity
        self._rows = RowHistories(shape, popularity, self._network.codes(popularity[None])[0])
        self._vector_of: dict[int, np.ndarray] = {}

    def parts(self, request: PredictStep) -> Iterator[Part]:
        tokens, positions = np.array(request.token_ids, dtype=np.int64), np.array(request.positions, dtype=np.int64)
        rows = np.array(request.rows, dtype=np.int64)
        single, runs = split_runs(rows)
        for start in range(0, len(single), CHUNK_TOKENS):
            indices = single[start : start + CHUNK_TOKENS]
            yield indices, self._predict_decode(tokens[indices], rows[indices], positions[indices])
        for run in runs:
            yield from self._predict_prefill(run, tokens[run], int(rows[run[0]]), positions[run])

    def _predict_decode(self, tokens: np.ndarray, rows: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Predict one token of each row: float32 [rows, layers, experts]."""
        lines = self._lines(rows, positions)
        requested = RequestedTokens(tokens[:, None], positions[:, None], self._rows.past(lines))
        recent = self._rows.recent(lines, positions == 0)
        return self._network.probabilities(self._token_features(tokens), recent, requested)

    def _predict_prefill(self, run: np.ndarray, tokens: np.ndarray, row: int, positions: np.ndarray) -> Iterator[Part]:
        """Predict many tokens of one row in order: each looks back on those before it, but not on their routing."""
        line = self._lines(np.array([row]), positions[:1])
        past, recent = self._rows.past(line), self._rows.recent(line, positions[:1] == 0)
        for start in range(0, len(run), CHUNK_TOKENS):
            indices = run[start : start + CHUNK_TOKENS]
            chunk = slice(start, start + len(indices))
            features = self._token_features(tokens[chunk])
            past = past.since(int(positions[start]) - self._shape.window)
            past = past.followed_by(self._without_routing(features, tokens[chunk], positions[chunk]))
            requested = RequestedTokens(tokens[None, chunk], positions[None, chunk], past)
            recent = recent.followed_by(self._unknown_recent(len(indices) - len(recent.has_previous)))
            yield indices, self._network.probabilities(features, recent, requested)
            recent = self._unknown_recent(1)

    def _lines(self, rows: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Return the line of each row's history; `NOWHERE` at the beginning of a row."""
        pairs = zip(rows.tolist(), positions.tolist(), strict=True)
        return np.array([self._rows.line(row, position) if position else NOWHERE for row, position in pairs])

    def _without_routing(self, features: TokenFeatures, tokens: np.ndarray, positions: np.ndarray) -> TokenHistory:
        """Return tokens as part of the past, without their routing."""
        codes = np.zeros((len(tokens), self._shape.code), dtype=np.float32)
        keys, values = self._network.keys_and_values(features.vectors, codes)
        routes = np.zeros((1, len(tokens), self._shape.layers * self._shape.top_k), dtype=np.uint16)
        has_routing = np.zeros((1, len(tokens)), dtype=bool)
        return TokenHistory(keys[None], values[None], routes, has_routing, tokens[None], positions[None])

    def _unknown_recent(self, count: int) -> RecentRouting:
        """Return the recent routing of tokens for which the routing just before is unknown."""
        return self._rows.recent(np.full(count, NOWHERE), np.zeros(count, dtype=bool))

    def _token_features(self, tokens: np.ndarray) -> TokenFeatures:
        counts, seen, grams = self._lexicon.look_up(tokens)
        sightings = seen.astype(np.float32)[:, None]
        probabilities = smooth(counts, sightings, self._network.popularity, PRIOR_TOKENS)
        features = self._network.token_features(probabilities, seen, grams)
        self._vector_of.update(zip(tokens.tolist(), features.vectors, strict=True))
        return features

    def _vectors(self, tokens: np.ndarray) -> np.ndarray:
        """Return the vectors [tokens, 2 * code] of tokens that ran; most were computed for their prediction."""
        if len(self._vector_of) > REMEMBERED_VECTORS:
            self._vector_of.clear()
        missing = np.array([token for token in set(tokens.tolist()) if token not in self._vector_of], dtype=np.int64)
        if len(missing):
            self._token_features(missing)
        return np.stack([self._vector_of[token] for token in tokens.tolist()])

    def learn(self, routing: StepRouting) -> None:
        routes = read_routing(routing, self._layers, self._experts)
        if routes is None or routes.shape[2] != self._shape.top_k:
            return
        columns = (column[: len(routes)] for column in (routing.rows, routing.positions))
        rows, positions = (np.array(column, dtype=np.int64) for column in columns)
        tokens = np.array(routing.token_ids, dtype=np.int64)
        for indices in _blocks(*split_runs(rows, positions)):
            lines = np.array([self._rows.open(int(rows[run]), int(positions[run])) for run in indices[:, 0]])
            self._rows.extend(lines, self._routed(tokens[indices], positions[indices[:, 0]], routes[indices]))

    def _routed(self, tokens: np.ndarray, first: np.ndarray, routes: np.ndarray) -> RoutedTokens:
        """Embed `tokens` [rows, tokens] with `routes` [rows, tokens, layers, top_k], and count them."""
        sizes, width = tokens.shape, self._shape.width
        keys_of_experts = expert_keys(routes.reshape(tokens.size, *routes.shape[2:]), self._experts)
        multi_hot = np.zeros((tokens.size, width), dtype=np.float32)
        np.put_along_axis(multi_hot, keys_of_experts, 1.0, axis=1)
        if self._adapts:
            self._lexicon.count(tokens.ravel(), multi_hot)
        codes = self._network.codes(multi_hot)
        keys, values = self._network.keys_and_values(self._vectors(tokens.ravel()), codes)
        shaped = (array.reshape(*sizes, -1) for array in (multi_hot, keys_of_experts, codes, keys, values))
        return RoutedTokens(first, tokens, *shaped)


def split_runs(rows: np.ndarray, positions: np.ndarray | None = None) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return the indices of tokens that are the only ones of their row, and those of each other row in order.

    `rows` and `positions` are int64 [tokens], the results int64 [n]. With `positions`, a row's tokens are split where
    its positions have a gap.
    """
    if not len(rows):
        return np.empty(0, dtype=np.int64), []
    order = np.argsort(rows, kind="stable")
    breaks = np.diff(rows[order]) != 0
    if positions is not None:
        breaks |= np.diff(positions[order]) != 1
    begins = np.concatenate([[0], np.flatnonzero(breaks) + 1, [len(rows)]])
    lengths = np.diff(begins)
    runs = [order[begins[run] : begins[run + 1]] for run in np.flatnonzero(lengths > 1).tolist()]
    return order[begins[:-1][lengths == 1]], runs


def _blocks(single: np.ndarray, runs: list[np.ndarray]) -> Iterator[np.ndarray]:
    """Yield indices [rows, tokens] in bounded chunks: single tokens as [rows, 1], then each run as [1, tokens]."""
    for start in range(0, len(single), CHUNK_TOKENS):
        yield single[start : start + CHUNK_TOKENS, None]
    for run in runs:
        for start in range(0, len(run), CHUNK_TOKENS):
            yield run[None, start : start + CHUNK_TOKENS]


def load_path(file: Path, model_shape: ModelShape) -> PathForecaster:
    """Load a predictor for a model.

    Raise UsageError if the file holds no path predictor, CheckpointError if it belongs to another model.
    """
    predictor = read_path(file)
    check_belongs(predictor.header, model_shape, str(file))
    by_string = predictor.header.shape.grams or predictor.table.named
    spelling = tokenizer_spelling(model_shape.folder) if by_string else None
    try:
        forecaster = PathForecaster(predictor, spelling)
        for _ in forecaster.parts(_TRIAL):  # an array of another size would end the predictor in the middle of a step
            pass
    except (KeyError, ValueError, IndexError, TypeError) as error:
        what = f"its arrays do not fit its sizes ({type(error).__name__}: {error})"
        raise UsageError(what, str(file), REMEDY) from error
    return forecaster

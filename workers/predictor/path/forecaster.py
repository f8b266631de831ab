"""The routing path predictor: what tokens will use, from their ids and the routing of the tokens before them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ....ipc.messages import PredictStep, StepRouting
from ...traces.routing import read_routing
from ..base.forecaster import CHUNK_TOKENS, Forecaster, Part
from ..base.model_shape import ModelShape
from ..base.predictor_file import check_belongs
from ..base.spelling import Spelling, tokenizer_spelling
from .file import PathFile, read_path
from .history import Asked, Recent, TokenHistory
from .lexicon import Lexicon
from .network import Network, Words
from .rows import NOWHERE, Rows, Seen

REMEMBERED_VECTORS = 4096
PRIOR_TOKENS = np.float32(1.0)
"""Popularity weighs as much in the token table as so many sightings."""


class PathForecaster(Forecaster):
    """Forecasts from a trained file and keeps a bounded history of every row.

    In decode the routing of all earlier tokens of a row is known and used. Tokens that run together with those before
    them, as in a prefill, get a forecast without; so does a row whose history is missing.
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
        self._rows = Rows(shape, popularity, self._network.codes(popularity[None])[0])
        self._vector_of: dict[int, np.ndarray] = {}
        self._starts = (np.arange(shape.layers) * shape.experts).astype(np.int64)

    def parts(self, coming: PredictStep) -> Iterator[Part]:
        tokens, positions = np.array(coming.token_ids, dtype=np.int64), np.array(coming.positions, dtype=np.int64)
        rows = np.array(coming.rows, dtype=np.int64)
        single, runs = runs_of(rows)
        for start in range(0, len(single), CHUNK_TOKENS):
            places = single[start : start + CHUNK_TOKENS]
            yield places, self._decoded(tokens[places], rows[places], positions[places])
        for run in runs:
            yield from self._prefilled(run, tokens[run], int(rows[run[0]]), positions[run])

    def _decoded(self, tokens: np.ndarray, rows: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """One token of each row."""
        lines = self._lines(rows, positions)
        asked = Asked(tokens[:, None], positions[:, None], self._rows.past(lines))
        return self._network.probabilities(self._words(tokens), self._rows.recent(lines, positions == 0), asked)

    def _prefilled(self, run: np.ndarray, tokens: np.ndarray, row: int, positions: np.ndarray) -> Iterator[Part]:
        """Many tokens of one row, in order: each looks back on those before it, but not on their routing."""
        line = self._lines(np.array([row]), positions[:1])
        past, recent = self._rows.past(line), self._rows.recent(line, positions[:1] == 0)
        for start in range(0, len(run), CHUNK_TOKENS):
            places = run[start : start + CHUNK_TOKENS]
            chunk = slice(start, start + len(places))
            words = self._words(tokens[chunk])
            past = past.since(int(positions[start]) - self._shape.window)
            past = past.followed_by(self._unrouted(words, tokens[chunk], positions[chunk]))
            asked = Asked(tokens[None, chunk], positions[None, chunk], past)
            recent = recent.followed_by(self._unknown(len(places) - len(recent.known)))
            yield places, self._network.probabilities(words, recent, asked)
            recent = self._unknown(1)

    def _lines(self, rows: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Where the history of each row is; there is none at its beginning."""
        places = zip(rows.tolist(), positions.tolist(), strict=True)
        return np.array([self._rows.line(row, position) if position else NOWHERE for row, position in places])

    def _unrouted(self, words: Words, tokens: np.ndarray, positions: np.ndarray) -> TokenHistory:
        """Tokens as part of the past, without their routing."""
        keys, values = self._network.contents(words.vector, np.zeros((len(tokens), self._shape.code), dtype=np.float32))
        routes = np.zeros((1, len(tokens), self._shape.layers * self._shape.top_k), dtype=np.uint16)
        known = np.zeros((1, len(tokens)), dtype=bool)
        return TokenHistory(keys[None], values[None], routes, known, tokens[None], positions[None])

    def _unknown(self, count: int) -> Recent:
        """For tokens of which the routing just before is not known."""
        return self._rows.recent(np.full(count, NOWHERE), np.zeros(count, dtype=bool))

    def _words(self, tokens: np.ndarray) -> Words:
        counts, seen, grams = self._lexicon.look_up(tokens)
        sightings = seen.astype(np.float32)[:, None]
        used = (counts + PRIOR_TOKENS * self._network.popularity) / (sightings + PRIOR_TOKENS)
        words = self._network.words(used, seen, grams)
        self._vector_of.update(zip(tokens.tolist(), words.vector, strict=True))
        return words

    def _vectors(self, tokens: np.ndarray) -> np.ndarray:
        """Of tokens that ran; most of them were forecast just before."""
        if len(self._vector_of) > REMEMBERED_VECTORS:
            self._vector_of.clear()
        missing = np.array([token for token in set(tokens.tolist()) if token not in self._vector_of], dtype=np.int64)
        if len(missing):
            self._words(missing)
        return np.stack([self._vector_of[token] for token in tokens.tolist()])

    def learn(self, used: StepRouting) -> None:
        routing = read_routing(used, self._layers, self._experts)
        if routing is None or routing.shape[2] != self._shape.top_k:
            return
        rows, positions = (np.array(column[: len(routing)], dtype=np.int64) for column in (used.rows, used.positions))
        tokens = np.array(used.token_ids, dtype=np.int64)
        for places in _alike(*runs_of(rows, positions)):
            lines = np.array([self._rows.open(int(rows[run]), int(positions[run])) for run in places[:, 0]])
            self._rows.extend(lines, self._seen(tokens[places], positions[places[:, 0]], routing[places]))

    def _seen(self, tokens: np.ndarray, first: np.ndarray, routing: np.ndarray) -> Seen:
        """`tokens` [rows, tokens], `routing` [rows, tokens, layers, top_k]."""
        sizes, width = tokens.shape, self._shape.width
        routes = (routing + self._starts[:, None]).reshape(tokens.size, -1)
        hot = np.zeros((tokens.size, width), dtype=np.float32)
        np.put_along_axis(hot, routes, 1.0, axis=1)
        if self._adapts:
            self._lexicon.count(tokens.ravel(), hot)
        codes = self._network.codes(hot)
        keys, values = self._network.contents(self._vectors(tokens.ravel()), codes)
        shaped = (array.reshape(*sizes, -1) for array in (hot, routes, codes, keys, values))
        return Seen(first, tokens, *shaped)


def runs_of(rows: np.ndarray, positions: np.ndarray | None = None) -> tuple[np.ndarray, list[np.ndarray]]:
    """Places of tokens that are the only ones of their row, and those of each other row in order.

    With `positions` a row's tokens are parted where its positions have a gap.
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


def _alike(single: np.ndarray, runs: list[np.ndarray]) -> Iterator[np.ndarray]:
    """Places [rows, tokens]: tokens alone in their row together, others row by row, all in bounded chunks."""
    for start in range(0, len(single), CHUNK_TOKENS):
        yield single[start : start + CHUNK_TOKENS, None]
    for run in runs:
        for start in range(0, len(run), CHUNK_TOKENS):
            yield run[None, start : start + CHUNK_TOKENS]


def load_path(file: Path, subject: ModelShape) -> PathForecaster:
    """Raises UsageError if it is no path predictor, CheckpointError if it belongs to another model."""
    predictor = read_path(file)
    check_belongs(predictor.header, subject, str(file))
    by_string = predictor.header.shape.grams or predictor.table.named
    return PathForecaster(predictor, tokenizer_spelling(subject.folder) if by_string else None)

"""The routing path predictor: what tokens will use, from their ids and the routing of the tokens before them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path as FilePath

import numpy as np

from ....ipc.messages import Forecast, Used
from ...checkpoint.survey import Survey
from ...routing import read_routing
from ..forecaster import CHUNK_TOKENS, Forecaster, Part
from .file import PathFile, check_model, read_path
from .lexicon import Lexicon, Spelling
from .mixing import RECENT_DECAYS
from .network import Network, Words
from .past import Asked, Past, Recent
from .rows import RowHistory, Rows

PRIOR_TOKENS = np.float32(1.0)
"""Popularity weighs as much in the token table as so many sightings."""


class Path(Forecaster):
    """Forecasts from a trained file and keeps a bounded history of every row.

    In decode the routing of all earlier tokens of a row is known and used. Tokens that run together with those before
    them, as in a prefill, get a forecast without; so does a row whose history is missing.
    """

    follows_rows = True

    def __init__(self, file: PathFile, spelling: Spelling | None = None) -> None:
        shape = file.header.shape
        super().__init__(shape.layers, shape.experts)
        self._shape = shape
        self._network = Network(shape, file.weights)
        self._lexicon = Lexicon(file.table, shape.grams, spelling)
        popularity = self._network.popularity
        self._no_code = np.zeros((1, shape.code), dtype=np.float32)
        self._popularity_code = self._network.codes(popularity[None])[0]
        self._rows = Rows(shape, popularity, self._popularity_code)
        self._starts = (np.arange(shape.layers) * shape.experts).astype(np.int64)

    def parts(self, coming: Forecast) -> Iterator[Part]:
        tokens, rows = np.array(coming.token_ids, dtype=np.int64), np.array(coming.rows, dtype=np.int64)
        positions = np.array(coming.positions, dtype=np.int64)
        order = np.argsort(rows, kind="stable")
        runs = np.split(order, np.flatnonzero(np.diff(rows[order])) + 1) if len(order) else []
        single = [run[0] for run in runs if len(run) == 1]
        for start in range(0, len(single), CHUNK_TOKENS):
            places = np.array(single[start : start + CHUNK_TOKENS])
            yield places, self._decoded(tokens[places], rows[places], positions[places])
        for run in runs:
            if len(run) > 1:
                yield from self._prefilled(run, tokens[run], int(rows[run[0]]), positions[run])

    def _decoded(self, tokens: np.ndarray, rows: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """One token of each row."""
        asked: list[Asked] = []
        recent: list[Recent] = []
        for place, (row, position) in enumerate(zip(rows.tolist(), positions.tolist(), strict=True)):
            history = self._before(row, position)
            alone = slice(place, place + 1)
            past = (history or self._rows.fresh()).past()
            asked.append(Asked(place, place + 1, tokens[alone], positions[alone], past))
            recent.append(self._unknown(1) if history is None else history.recent())
        return self._network.probabilities(self._words(tokens), Recent.of(recent), asked)

    def _prefilled(self, run: np.ndarray, tokens: np.ndarray, row: int, positions: np.ndarray) -> Iterator[Part]:
        """Many tokens of one row, in order: each looks back on those before it, but not on their routing."""
        history = self._before(row, int(positions[0]))
        past = (history or self._rows.fresh()).past()
        for start in range(0, len(run), CHUNK_TOKENS):
            chunk = slice(start, start + CHUNK_TOKENS)
            words, places = self._words(tokens[chunk]), positions[chunk]
            past = past.between(int(places[0]) - self._shape.window, int(places[0]))
            past = past.followed_by(self._unrouted(words, tokens[chunk], places))
            first = history.recent() if history is not None and start == 0 else None
            recent = self._unknown(len(places)) if first is None else Recent.of([first, self._unknown(len(places) - 1)])
            asked = [Asked(0, len(places), tokens[chunk], places, past)]
            yield run[chunk], self._network.probabilities(words, recent, asked)

    def _before(self, row: int, position: int) -> RowHistory | None:
        """What came before a token; nothing came before the first one."""
        return self._rows.fresh() if position == 0 else self._rows.before(row, position)

    def _unrouted(self, words: Words, tokens: np.ndarray, positions: np.ndarray) -> Past:
        keys, values = self._network.contents(words, np.repeat(self._no_code, len(tokens), axis=0))
        routes = np.zeros((len(tokens), self._shape.layers * self._shape.top_k), dtype=np.uint16)
        return Past(keys, values, routes, np.zeros(len(tokens), dtype=bool), tokens, positions)

    def _unknown(self, count: int) -> Recent:
        averages = len(RECENT_DECAYS)
        popularity = np.broadcast_to(self._network.popularity, (count, averages, self._shape.width))
        return Recent(
            previous=np.zeros((count, self._shape.width), dtype=np.float32),
            previous_code=np.repeat(self._no_code, count, axis=0),
            averages=popularity,
            average_codes=np.broadcast_to(self._popularity_code, (count, averages, self._shape.code)),
            known=np.zeros((count, 1), dtype=np.float32),
        )

    def _words(self, tokens: np.ndarray) -> Words:
        counts, seen, grams = self._lexicon.look_up(tokens)
        sightings = seen.astype(np.float32)[:, None]
        used = (counts + PRIOR_TOKENS * self._network.popularity) / (sightings + PRIOR_TOKENS)
        return self._network.words(used, seen, grams)

    def learn(self, used: Used) -> None:
        routing = read_routing(used, self._layers, self._experts)
        if routing is None or routing.shape[2] != self._shape.top_k:
            return
        rows = np.array(used.rows[: len(routing)], dtype=np.int64)
        order = np.argsort(rows, kind="stable")
        tokens, positions = np.array(used.token_ids, dtype=np.int64)[order], np.array(used.positions)[order]
        for start in range(0, len(order), CHUNK_TOKENS):
            chunk = slice(start, start + CHUNK_TOKENS)
            self._remember(tokens[chunk], rows[order][chunk], positions[chunk], routing[order[chunk]])

    def _remember(self, tokens: np.ndarray, rows: np.ndarray, positions: np.ndarray, routing: np.ndarray) -> None:
        routes = (routing + self._starts[None, :, None]).reshape(len(routing), -1)
        hot = np.zeros((len(routes), self._shape.width), dtype=np.float32)
        np.put_along_axis(hot, routes, 1.0, axis=1)
        codes = self._network.codes(hot)
        keys, values = self._network.contents(self._words(tokens), codes)
        breaks = (np.diff(rows) != 0) | (np.diff(positions) != 1)
        for run in np.split(np.arange(len(rows)), np.flatnonzero(breaks) + 1):
            first = int(positions[run[0]])
            history = self._rows.continued(int(rows[run[0]]), first)
            history.extend(first, tokens[run], hot[run], routes[run], codes[run], keys[run], values[run])


def load_path(file: FilePath, survey: Survey) -> Path:
    """Raises UsageError if it is no path predictor, CheckpointError if it belongs to another model."""
    predictor = read_path(file)
    shape = predictor.header.shape
    check_model((shape.layers, shape.experts, shape.top_k), predictor.header.model, survey, str(file))
    return Path(predictor, tokenizer_spelling(survey.folder) if shape.grams else None)


def tokenizer_spelling(folder: str) -> Spelling | None:
    """Token strings as the model's tokenizer.json has them; None without one."""
    file = FilePath(folder) / "tokenizer.json"
    if not file.is_file():
        return None
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(file)).id_to_token

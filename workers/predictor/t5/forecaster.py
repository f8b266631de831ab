"""The paper's transformer as a forecaster: it reads token ids, and keeps keys and values of the rows that run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from ....ipc.messages import PredictStep, StepRouting
from ..base.forecaster import Forecaster, Part
from ..base.lru import LruDict
from ..base.model_shape import ModelShape
from ..base.predictor_file import check_belongs
from ..base.spelling import Spelling, tokenizer_spelling
from .file import T5File, read_paper
from .module import T5Module, padded
from .row import T5Row
from .shape import FIRST, UNKNOWN

REMEMBERED_ROWS = 256
CACHED_TOKENS = 16_384
"""Of all rows together; each has keys and values of 48 KB with the paper's sizes."""


class T5Forecaster(Forecaster):
    """Knows the ids of the prompt and of the decoded tokens of every row, and no routing."""

    follows_rows = True

    def __init__(self, file: T5File, spelling: Spelling | None = None) -> None:
        shape = file.header.shape
        super().__init__(shape.layers, shape.experts)
        self._window, self._spelling, self._named = shape.window, spelling, file.tokens.dtype.kind == "U"
        self._numbers = {token: FIRST + number for number, token in enumerate(file.tokens.tolist())}
        self._module = T5Module(shape).eval()
        self._module.load_state_dict({name: torch.from_numpy(array) for name, array in file.weights.items()})
        self._rows: LruDict[T5Row] = LruDict(REMEMBERED_ROWS)

    def parts(self, coming: PredictStep) -> Iterator[Part]:
        rows = np.array(coming.rows, dtype=np.int64)
        runs = [np.flatnonzero(rows == row) for row in dict.fromkeys(coming.rows)]
        single = np.array([run[0] for run in runs if len(run) == 1], dtype=np.int64)
        if len(single):
            yield single, np.stack([self._decoded(coming, place) for place in single.tolist()])
        for run in runs:
            if len(run) > 1:
                yield from self._prefilled(run, [self._number(coming.token_ids[place]) for place in run.tolist()])

    def _decoded(self, coming: PredictStep, place: int) -> np.ndarray:
        """Of the coming token of a row; for a row that is not remembered the token is all that is known."""
        row, number = self._rows.get(coming.rows[place]), self._number(coming.token_ids[place])
        if row is None or not row.prompt or row.end != coming.positions[place]:
            row = T5Row(prompt=[number])
        return row.forecast(self._module, number)

    @torch.no_grad()
    def _prefilled(self, run: np.ndarray, numbers: list[int]) -> Iterator[Part]:
        """A prompt, a window at a time."""
        for start in range(0, len(run), self._window):
            window = padded([numbers[start : start + self._window]])
            yield run[start : start + self._window], torch.sigmoid(self._module(window, window)[0]).numpy()

    def _number(self, token: int) -> int:
        name = self._spelling(token) if self._named and self._spelling else token
        return self._numbers.get(name, UNKNOWN)

    def learn(self, used: StepRouting) -> None:
        places = list(zip(used.rows, used.positions, used.token_ids, strict=False))
        several = {row for row, count in zip(*np.unique(used.rows, return_counts=True), strict=True) if count > 1}
        for number, position, token in places:
            row = self._rows.get(number)
            if row is None or position == 0 or row.end != position:
                row = T5Row()
            row.extend(self._number(token), prompted=not row.prompt or (number in several and not row.known))
            self._rows[number] = row
        self._bound_caches()

    def _bound_caches(self) -> None:
        """What the rows heard of longest ago have cached is worked out again if they come back."""
        room = CACHED_TOKENS
        for row in self._rows.newest_first():
            room -= row.cached_tokens
            if room < 0:
                row.forget()


def load_paper(file: Path, subject: ModelShape) -> T5Forecaster:
    """Raises UsageError if it is no such predictor, CheckpointError if it belongs to another model."""
    predictor = read_paper(file)
    check_belongs(predictor.header, subject, str(file))
    return T5Forecaster(predictor, tokenizer_spelling(subject.folder))

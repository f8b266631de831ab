"""The paper's transformer as a forecaster. It recomputes the known tokens of a row at every step."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ....ipc.messages import Forecast, Used
from ..forecaster import Forecaster, Part
from ..spelling import Spelling
from .file import PaperFile
from .module import PaperModule, padded
from .shape import FIRST, UNKNOWN

REMEMBERED_ROWS = 256
ROWS_AT_ONCE = 8


@dataclass
class _Row:
    prompt: list[int] = field(default_factory=list)
    known: list[int] = field(default_factory=list)
    """Decoded tokens."""
    encoded: Tensor | None = None
    """[1, prompt, width]"""

    @property
    def end(self) -> int:
        return len(self.prompt) + len(self.known)


class Paper(Forecaster):
    """Knows the ids of the prompt and of the decoded tokens of every row, and no routing."""

    follows_rows = True

    def __init__(self, file: PaperFile, spelling: Spelling | None = None) -> None:
        shape = file.header.shape
        super().__init__(shape.layers, shape.experts)
        self._window, self._spelling, self._named = shape.window, spelling, file.tokens.dtype.kind == "U"
        self._numbers = {token: FIRST + number for number, token in enumerate(file.tokens.tolist())}
        self._module = PaperModule(shape).eval()
        self._module.load_state_dict({name: torch.from_numpy(array) for name, array in file.weights.items()})
        self._rows: OrderedDict[int, _Row] = OrderedDict()

    def parts(self, coming: Forecast) -> Iterator[Part]:
        rows = np.array(coming.rows, dtype=np.int64)
        runs = [np.flatnonzero(rows == row) for row in dict.fromkeys(coming.rows)]
        single = np.array([run[0] for run in runs if len(run) == 1], dtype=np.int64)
        for start in range(0, len(single), ROWS_AT_ONCE):
            places = single[start : start + ROWS_AT_ONCE]
            yield places, self._decoded([self._followed(coming, place) for place in places.tolist()])
        for run in runs:
            if len(run) > 1:
                yield from self._prefilled(run, [self._number(coming.token_ids[place]) for place in run.tolist()])

    def _followed(self, coming: Forecast, place: int) -> _Row:
        """The row with the coming token as the last one known; a row that is not remembered is the token alone."""
        row, number = self._rows.get(coming.rows[place]), self._number(coming.token_ids[place])
        if row is None or not row.prompt or row.end != coming.positions[place]:
            row = _Row([number])
            return _Row([number], [number], self._encoding(row))
        return _Row(row.prompt, [*row.known, number], self._encoding(row))

    @torch.no_grad()
    def _encoding(self, row: _Row) -> Tensor:
        if row.encoded is None:
            row.encoded = self._module.encode(padded([row.prompt[-self._window :]]))
        return row.encoded

    @torch.no_grad()
    def _decoded(self, rows: list[_Row]) -> np.ndarray:
        prompts = padded([row.prompt[-self._window :] for row in rows])
        encoded = torch.zeros(*prompts.shape, self._module.shape.width)
        for line, row in enumerate(rows):
            if row.encoded is not None:
                encoded[line, : row.encoded.shape[1]] = row.encoded[0]
        known = [row.known[-self._window :] for row in rows]
        logits = self._module.decode(encoded, prompts, padded(known))
        last = torch.tensor([len(each) - 1 for each in known])
        return torch.sigmoid(logits[torch.arange(len(rows)), last]).numpy()

    @torch.no_grad()
    def _prefilled(self, run: np.ndarray, numbers: list[int]) -> Iterator[Part]:
        """A prompt, a window at a time."""
        for start in range(0, len(run), self._window):
            window = padded([numbers[start : start + self._window]])
            yield run[start : start + self._window], torch.sigmoid(self._module(window, window)[0]).numpy()

    def _number(self, token: int) -> int:
        name = self._spelling(token) if self._named and self._spelling else token
        return self._numbers.get(name, UNKNOWN)

    def learn(self, used: Used) -> None:
        places = list(zip(used.rows, used.positions, used.token_ids, strict=False))
        several = {row for row, count in zip(*np.unique(used.rows, return_counts=True), strict=True) if count > 1}
        for number, position, token in places:
            row = self._rows.setdefault(number, _Row())
            if position == 0 or row.end != position:
                row = self._rows[number] = _Row()
            prompted = not row.prompt or (number in several and not row.known)
            (row.prompt if prompted else row.known).append(self._number(token))
            row.encoded = None if prompted else row.encoded
            self._rows.move_to_end(number)
        while len(self._rows) > REMEMBERED_ROWS:
            self._rows.popitem(last=False)

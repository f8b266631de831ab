"""Answers questions about single rows: in time, late, never, or with nonsense, as a test wants it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from expertflow.ipc.messages import PredictRows, RowPredictions

LAYERS, EXPERTS = 2, 6
Route = Callable[[int, int], np.ndarray]
"""Scores uint8 [layers, experts] of a row at a position."""


def any_route(row: int, position: int) -> np.ndarray:
    """Different ones at every step."""
    rng = np.random.default_rng([row, position])
    return rng.integers(0, 256, (LAYERS, EXPERTS), dtype=np.uint8)


def route_of_kind(row: int, position: int) -> np.ndarray:
    """Odd rows use the first half of the experts, even rows the other."""
    scores = np.zeros((LAYERS, EXPERTS), dtype=np.uint8)
    scores[:, : EXPERTS // 2 if row % 2 else EXPERTS] = 255
    scores[:, : 0 if row % 2 else EXPERTS // 2] = 0
    return scores


@dataclass
class FakePredictor:
    """Questions in the order in which they came, and what was asked: token by row and position."""

    route: Route = any_route
    questions: deque[PredictRows] = field(default_factory=deque)
    asked: dict[tuple[int, int], int] = field(default_factory=dict)
    numbers: list[int] = field(default_factory=list)

    def receive(self, question: PredictRows) -> None:
        assert question.rows and len(set(question.rows)) == len(question.rows)
        assert not self.numbers or question.number > self.numbers[-1], "questions must be numbered upwards"
        self.numbers.append(question.number)
        self.questions.append(question)
        places = zip(question.rows, question.positions, strict=True)
        self.asked |= dict(zip(places, question.token_ids, strict=True))

    def answer(self) -> RowPredictions | None:
        """The oldest question's answer; None if there is no question."""
        if not self.questions:
            return None
        question = self.questions.popleft()
        places = zip(question.rows, question.positions, strict=True)
        return RowPredictions(
            question.number, question.rows, b"".join(self.route(*place).tobytes() for place in places)
        )

    def nonsense(self, kind: int) -> RowPredictions:
        """An answer that must not be believed: unknown number, other rows, too short, too long."""
        question = (
            self.questions[0] if self.questions else PredictRows(number=1, token_ids=[1], rows=[1], positions=[1])
        )
        scores = bytes(len(question.rows) * LAYERS * EXPERTS)
        return [
            RowPredictions(question.number + 1000, question.rows, scores),
            RowPredictions(question.number, [row + 1 for row in question.rows], scores),
            RowPredictions(question.number, question.rows, scores[1:]),
            RowPredictions(question.number, [], b""),
            RowPredictions(question.number, question.rows, scores * 2),
        ][kind % 5]

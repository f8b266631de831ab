"""What the predictor foresees of single rows: asked for ahead of time, believed only where question and answer fit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from ...ipc.messages import PredictRows, RowPredictions
from .prediction_requests import PredictionRequests
from .requests import RequestState

QUESTIONS_OPEN = 64
MAX_ROWS = 4096
"""More are not waited for, or remembered: neither a predictor that is down nor rows that came and went cost memory."""


class RowPredictionCache:
    """Questions and answers by row. A row is foreseen for one position, that of its next token."""

    def __init__(
        self, layers: int, experts: int, first_number: int, prediction_requests: PredictionRequests | None = None
    ) -> None:
        self._shape, self._number = (layers, experts), first_number
        self._prediction_requests = prediction_requests or PredictionRequests()
        self._questions: dict[int, dict[int, int]] = {}
        """Number of a question → position of each row in it."""
        self._asked: dict[int, int] = {}
        self._known: dict[int, tuple[int, np.ndarray]] = {}
        """Of a row: the position asked for, and the position foreseen with uint8 [layers, experts]."""
        self.rejected = 0

    def ask(self, requests: Iterable[RequestState]) -> PredictRows | None:
        """A question for the rows that were not asked about yet; None if there are none."""
        if len(self._asked) > MAX_ROWS:
            self.forget()
        new = [request for request in requests if self._asked.get(request.number) != request.length]
        if not new:
            return None
        self._number += 1
        self._asked |= {request.number: request.length for request in new}
        self._questions[self._number] = {request.number: request.length for request in new}
        if len(self._questions) > QUESTIONS_OPEN:
            del self._questions[min(self._questions)]
        return PredictRows(
            number=self._number,
            token_ids=[request.last_token for request in new],
            rows=[request.number for request in new],
            positions=[self._prediction_requests.position(request) for request in new],
        )

    def take_in(self, answer: RowPredictions) -> None:
        """An answer to an open question; anything else is dropped and counted."""
        question = self._questions.pop(answer.number, None)
        layers, experts = self._shape
        if question is None or answer.rows != list(question) or len(answer.scores) != len(question) * layers * experts:
            self.rejected += 1
            return
        scores = np.frombuffer(answer.scores, dtype=np.uint8).reshape(-1, layers, experts)
        for each, (row, length) in zip(scores, question.items(), strict=True):
            self._known[row] = (length, each)

    def routes(self, requests: Sequence[RequestState]) -> np.ndarray | None:
        """uint8 [rows, layers, experts] for the next token of these; None while one is not foreseen."""
        found = [self._known.get(request.number) for request in requests]
        fresh = [
            known[1]
            for known, request in zip(found, requests, strict=True)
            if known is not None and known[0] == request.length
        ]
        return np.stack(fresh) if requests and len(fresh) == len(requests) else None

    def forget(self) -> None:
        """What was asked and answered is over; answers that are still on their way are not waited for."""
        self._questions.clear()
        self._asked.clear()
        self._known.clear()

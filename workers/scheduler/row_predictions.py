"""Predictions of single rows, requested ahead of time and used only where question and answer fit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from ...ipc.messages import PredictRows, RowPredictions
from .prediction_requests import PredictionRequests
from .requests import RequestState

MAX_OPEN_QUESTIONS = 64
MAX_ROWS = 4096
"""Bounds of the memory for open questions, and for rows that have ended meanwhile."""


class RowPredictionCache:
    """Questions and answers by row. A row is predicted for one position, that of its next token."""

    def __init__(
        self, layers: int, experts: int, first_number: int, prediction_requests: PredictionRequests | None = None
    ) -> None:
        self._shape, self._number = (layers, experts), first_number
        self._prediction_requests = prediction_requests or PredictionRequests()
        self._questions: dict[int, dict[int, int]] = {}
        """Number of a question -> length of each of its rows when it was asked."""
        self._asked_lengths: dict[int, int] = {}
        self._predictions: dict[int, tuple[int, np.ndarray]] = {}
        """Row -> its length when the prediction was requested, and the prediction, uint8 [layers, experts]."""
        self.rejected = 0

    def ask(self, requests: Iterable[RequestState]) -> PredictRows | None:
        """Return a question for the rows that were not asked about at this length; None if there are none."""
        if len(self._asked_lengths) > MAX_ROWS:
            self.clear()
        new = [request for request in requests if self._asked_lengths.get(request.number) != request.length]
        if not new:
            return None
        self._number += 1
        self._asked_lengths |= {request.number: request.length for request in new}
        self._questions[self._number] = {request.number: request.length for request in new}
        if len(self._questions) > MAX_OPEN_QUESTIONS:
            del self._questions[min(self._questions)]
        return PredictRows(
            number=self._number,
            token_ids=[request.last_token for request in new],
            rows=[request.number for request in new],
            positions=[self._prediction_requests.position(request) for request in new],
        )

    def on_answer(self, answer: RowPredictions) -> None:
        """Store an answer to an open question; drop and count any other."""
        question = self._questions.pop(answer.number, None)
        layers, experts = self._shape
        if question is None or answer.rows != list(question) or len(answer.scores) != len(question) * layers * experts:
            self.rejected += 1
            return
        scores = np.frombuffer(answer.scores, dtype=np.uint8).reshape(-1, layers, experts)
        for prediction, (row, length) in zip(scores, question.items(), strict=True):
            self._predictions[row] = (length, prediction)

    def routes(self, requests: Sequence[RequestState]) -> np.ndarray | None:
        """Return uint8 [rows, layers, experts], 255 is certain, for the rows' next tokens; None if one is missing."""
        found = [self._predictions.get(request.number) for request in requests]
        fresh = [
            entry[1]
            for entry, request in zip(found, requests, strict=True)
            if entry is not None and entry[0] == request.length
        ]
        return np.stack(fresh) if requests and len(fresh) == len(requests) else None

    def clear(self) -> None:
        """Forget all questions and answers; answers that still arrive count as rejected."""
        self._questions.clear()
        self._asked_lengths.clear()
        self._predictions.clear()

"""Messages that ask the predictor about coming steps: their tokens, and the tokens' positions.

Behind an encoder the decoder begins with a token of its own, so encoder and decoder count positions separately.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ...ipc.messages import PredictStep, RequestRow
from .requests import RequestState


@dataclass(frozen=True, slots=True)
class PredictionRequests:
    """Maker of `PredictStep`. `decoder_start`: first token of the decoder; None: the model has no encoder."""

    decoder_start: int | None = None

    def prefill(self, step: int, rows: Sequence[RequestRow]) -> PredictStep:
        """Return the request for a prefill of these rows."""
        if self.decoder_start is None:
            return _predict_step(step, [(row.number, row.cached, row.token_ids[row.cached :]) for row in rows])
        ends = [len(row.token_ids) - row.generated for row in rows]
        prompts = [(row.number, 0, row.token_ids[:end]) for row, end in zip(rows, ends, strict=True)]
        outputs = [
            (row.number, 0, [self.decoder_start, *row.token_ids[end:]]) for row, end in zip(rows, ends, strict=True)
        ]
        return _predict_step(step, prompts + outputs, sources=sum(len(prompt) for _, _, prompt in prompts))

    def chunk(self, step: int, row: RequestRow, begin: int, end: int | None = None) -> PredictStep:
        """Return the request for a part of a row's prefill: from position `begin` up to `end`."""
        return _predict_step(step, [(row.number, begin, row.token_ids[begin:end])])

    def decode(self, step: int, requests: Iterable[RequestState]) -> PredictStep:
        """Return the request for a decode step of these requests' rows."""
        rows = list(requests)
        return PredictStep(
            step=step,
            token_ids=[request.last_token for request in rows],
            rows=[request.number for request in rows],
            positions=[self.position(request) for request in rows],
        )

    def position(self, request: RequestState) -> int:
        """Return the position of a row's newest token, which decodes next."""
        return request.length - 1 if self.decoder_start is None else len(request.tokens)


def _predict_step(step: int, texts: Sequence[tuple[int, int, list[int]]], sources: int = 0) -> PredictStep:
    """Return the request for texts: row, position of the first id, and ids each."""
    return PredictStep(
        step=step,
        token_ids=[token for _, _, ids in texts for token in ids],
        rows=[number for number, _, ids in texts for _ in ids],
        positions=[begin + offset for _, begin, ids in texts for offset in range(len(ids))],
        sources=sources,
    )

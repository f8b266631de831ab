"""Compares a predictor with simpler ones on sequences that it did not learn from."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import msgspec
import numpy as np
from threadpoolctl import threadpool_limits

from ....ipc.messages import PredictStep
from ...traces.trace import Trace
from ..base.forecaster import Forecaster
from ..base.token_table import TokenTable
from ..base.training_end import TrainingEnd
from ..baselines import Previous
from .figures import Figures, judge
from .replay import decode, learn_trace, prefill, step_routing_at

MAX_JUDGED_TOKENS = 30_000
TIMED_ROWS = 32
TIMED_STEPS = 40
UNSEEN = -1
"""A token id that no table knows."""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Figures of a predictor and of simpler ones, over the same held-out sequences."""

    tokens: int
    tokens_given: int
    """More than `tokens` if only the first sequences were judged."""
    prompt: float
    """Share of each sequence that ran as its prompt before decode was judged."""
    decode: Figures
    """Decode: the routing of all earlier tokens is known."""
    still: Figures
    """Decode by a predictor that does not go on learning from the sequences it is judged by."""
    prefill: Figures
    """Prefill: no routing is known."""
    table: Figures
    """The token table alone, made from the training sequences, or counted while it is judged (`learned_from`)."""
    previous: Figures
    """The previous token's routing (the paper's TLP)."""
    popularity: Figures
    """The popularity of the experts over all tokens."""
    step_ms: float
    """CPU time of one prediction and the learning after it, for `TIMED_ROWS` rows in decode."""
    file_bytes: int = 0
    """0: not written."""
    learned_from: int = 0
    """Tokens from which token table and popularity were made; 0: both count while they are judged."""
    training: TrainingEnd | None = None
    """End of the training; None: the predictor was read from a file."""

    def main_figures(self) -> dict[str, float]:
        """Return the figures that the header of a predictor file keeps."""
        return {
            "tokens": self.decode.tokens,
            "decode_recall_still": round(self.still.recall, 4),
            "decode_recall": round(self.decode.recall, 4),
            "decode_recall_double": round(self.decode.recall_double, 4),
            "decode_precision": round(self.decode.precision, 4),
            "prefill_recall": round(self.prefill.recall, 4),
            "calibration_error": round(self.decode.calibration_error, 4),
            "table_recall": round(self.table.recall, 4),
            "step_ms": round(self.step_ms, 2),
        }


def compare(
    make: Callable[[bool], Forecaster],
    learned: Trace | None,
    held_out: Trace,
    prompt: float = 0.0,
    adapts: bool = True,
    max_tokens: int = MAX_JUDGED_TOKENS,
) -> Report:
    """Judge a predictor, a token table, the previous token's routing and popularity on the same sequences.

    `make(adapts)` returns a fresh predictor, which goes on learning or not (`adapts`: it can). The token table is made
    from `learned`; without it, the table counts while it is judged. The first sequences of `held_out` are judged, with
    `max_tokens` tokens at most (0: all). In decode the share `prompt` of every sequence runs first, in one step.
    """
    judged, adapting = first_sequences(held_out, max_tokens), make(True)
    in_decode = judge(decode(adapting, judged, prompt=prompt))
    table = _table(learned, held_out)
    popularity = _table(None, held_out) if learned is None else table
    previous = Previous(held_out.layers, held_out.expert_count, held_out.top_k)
    unseen = replace(judged, token_ids=np.full_like(judged.token_ids, UNSEEN))
    return Report(
        tokens=judged.tokens,
        tokens_given=held_out.tokens,
        prompt=prompt,
        decode=in_decode,
        still=judge(decode(make(False), judged, prompt=prompt)) if adapts else in_decode,
        prefill=judge(prefill(make(False), judged)),
        table=judge(decode(table, judged, learning=learned is None, prompt=prompt)),
        previous=judge(decode(previous, judged, prompt=prompt)),
        popularity=judge(decode(popularity, unseen, learning=learned is None, prompt=prompt)),
        step_ms=step_ms(adapting, held_out),
        learned_from=learned.tokens if learned else 0,
    )


def _table(learned: Trace | None, judged: Trace) -> TokenTable:
    table = TokenTable(judged.layers, judged.expert_count, judged.top_k, memory_bytes=256 << 20)
    if learned is not None:
        learn_trace(table, learned)
    return table


def first_sequences(trace: Trace, tokens: int = MAX_JUDGED_TOKENS) -> Trace:
    """Return the first sequences, as many as have `tokens` tokens together, but at least one. 0: all."""
    if not tokens:
        return trace
    whole = int(np.searchsorted(trace.offsets, tokens, side="right")) - 1
    return trace if whole >= trace.sequences else trace.take(np.arange(max(whole, 1)))


def step_ms(forecaster: Forecaster, trace: Trace, rows: int = TIMED_ROWS, steps: int = TIMED_STEPS) -> float:
    """Return the median CPU time of a decode step, in ms, when the rows' histories are full.

    It runs on one core, as the predictor's process does, and uses row numbers of its own.
    """
    with threadpool_limits(1):
        return _step_ms(forecaster, trace, rows, steps)


def _step_ms(forecaster: Forecaster, trace: Trace, rows: int, steps: int) -> float:
    length = min(trace.tokens, 300 + steps)
    numbers = [-2 - row for row in range(rows)]
    times_ms: list[float] = []
    for position in range(length):
        indices = (position + 7 * np.arange(rows)) % trace.tokens
        request = PredictStep(
            step=position, token_ids=trace.token_ids[indices].tolist(), rows=numbers, positions=[position] * rows
        )
        routing = step_routing_at(trace, position, numbers, [position] * rows, indices)
        begin_ns = time.process_time_ns()
        if position >= length - steps:
            forecaster.forecast(request)
        forecaster.learn(routing)
        times_ms.append((time.process_time_ns() - begin_ns) / 1e6)
    return float(np.median(times_ms[-steps:]))

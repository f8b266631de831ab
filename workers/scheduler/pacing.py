"""One or two units in flight, by measured cost.

Two units let the loader fill one's experts while the other computes, but every expert that both need is run twice. So
both are tried for some rounds, the faster is kept, and the trial is repeated ever more rarely. A round is one token for
every row. Without stalls there is nothing to hide, and one unit stays without a trial.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

MEASURED_ROUNDS = 8
WARM_UP_ROUNDS = 2
FIRST_REST_ROUNDS = 128
LONGEST_REST_ROUNDS = 4096
NEGLIGIBLE_STALL = 0.03
"""Share of the time below which waiting for experts is not worth hiding."""
WORTH_IT = 1.03
"""How much faster two units must be to be kept."""
COMPARABLE = 0.25
"""Rates are compared only if the numbers of rows differ by no more than this share."""


@dataclass(slots=True)
class _Measurement:
    rows: int
    rounds: float = 0.0
    tokens: int = 0
    elapsed_ns: int = 0
    stall_ns: int = 0

    @property
    def rate(self) -> float:
        """Tokens a nanosecond."""
        return self.tokens / max(1, self.elapsed_ns)

    @property
    def stall_share(self) -> float:
        return self.stall_ns / max(1, self.elapsed_ns)

    def comparable(self, rows: int) -> bool:
        return abs(rows - self.rows) <= COMPARABLE * self.rows


class UnitPacer:
    """Hears of every decode step and says how many units are `wanted` in flight."""

    def __init__(self, units: str) -> None:
        self._auto = units == "auto"
        self.wanted: Literal[1, 2] = 2 if units == "two" else 1
        self.trials = 0
        self._last_ns: int | None = None
        self._rest_rounds = 0.0
        self._next_rest = FIRST_REST_ROUNDS
        self._now: _Measurement | None = None
        self._with_one: _Measurement | None = None

    def interrupted(self) -> None:
        """Something else than decoding ran: the time until the next step tells nothing."""
        self._last_ns = None

    def decoded(self, now_ns: int, tokens: int, stall_ns: int, rows: int) -> None:
        """A decode step brought `tokens` and waited `stall_ns`; `rows` run now, in all units."""
        before_ns, self._last_ns = self._last_ns, now_ns
        if not self._auto:
            return None
        if rows < 2:
            return self._start_over()
        if before_ns is None:
            return None
        rounds = tokens / rows
        if self._rest_rounds > 0:
            self._rest_rounds -= rounds
            if self._rest_rounds <= 0:
                self._start_over()
            return None
        return self._measure(now_ns - before_ns, tokens, stall_ns, rows, rounds)

    def _measure(self, elapsed_ns: int, tokens: int, stall_ns: int, rows: int, rounds: float) -> None:
        if self._now is None or not self._now.comparable(rows):
            self._now = _Measurement(rows)
        now = self._now
        now.rounds += rounds
        if now.rounds <= WARM_UP_ROUNDS:
            return
        now.tokens += tokens
        now.elapsed_ns += elapsed_ns
        now.stall_ns += stall_ns
        if now.rounds >= WARM_UP_ROUNDS + MEASURED_ROUNDS:
            self._now = None
            self._conclude(now)

    def _conclude(self, measured: _Measurement) -> None:
        if self.wanted == 1:
            self._with_one = measured
            if measured.stall_share < NEGLIGIBLE_STALL:
                self._rest()
            else:
                self.wanted = 2
        elif self._with_one is None or not self._with_one.comparable(measured.rows):
            self._start_over()
        else:
            self.trials += 1
            self.wanted = 2 if measured.rate > WORTH_IT * self._with_one.rate else 1
            self._rest()

    def _rest(self) -> None:
        self._rest_rounds = float(self._next_rest)
        self._next_rest = min(2 * self._next_rest, LONGEST_REST_ROUNDS)

    def _start_over(self) -> None:
        self.wanted, self._now, self._with_one, self._rest_rounds = 1, None, None, 0.0

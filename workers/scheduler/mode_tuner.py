"""How to decode, by measured cost: units in flight, forecasts or none, rows regrouped or not.

Two units let the loader fill one's experts while the other computes, but every expert that both need is run twice.
Forecasts and hints hide loading, and cost a process's time and loads that were not needed. Regrouped units share more
experts, and have to wait for each other. So each is tried against the present way for some rounds, and what is faster
is kept. A round is one token for every row. Trials are repeated ever more rarely while they change nothing.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace

MEASURED_ROUNDS = 8
WARM_UP_ROUNDS = 2
FIRST_REST_ROUNDS = 128
MAX_REST_ROUNDS = 4096
NEGLIGIBLE_STALL = 0.03
"""Share of the time below which waiting for experts is not worth hiding."""
WORTH_IT = 1.03
"""How much faster another way must be to be taken."""
COMPARABLE = 0.25
"""Rates are compared only if the numbers of rows differ by no more than this share."""
UNITS = {"one": 1, "two": 2, "three": 3, "four": 4}


@dataclass(frozen=True, slots=True)
class Mode:
    """A way to decode."""

    units: int = 1
    """Units in flight."""
    prediction: bool = True
    """Steps have forecasts and hints ahead of them."""
    grouping: bool = False
    """Rows change units where that saves experts."""


@dataclass(frozen=True, slots=True)
class ModeChoices:
    """What the configuration leaves open (`auto`), or not; see `Config`."""

    units: str = "auto"
    prediction: str = "on"
    grouping: str = "off"

    def first(self) -> Mode:
        """What is done until something is measured."""
        return Mode(UNITS.get(self.units, 1), True, self.grouping not in ("off", "auto"))


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
    def stalls(self) -> bool:
        return self.stall_ns >= NEGLIGIBLE_STALL * max(1, self.elapsed_ns)

    def comparable(self, rows: int) -> bool:
        return abs(rows - self.rows) <= COMPARABLE * self.rows


class _Incomparable(Exception):
    """Rows have come or gone between two measurements."""


class ModeTuner:
    """Hears of every decode step and says which way is `wanted`."""

    def __init__(self, choices: ModeChoices) -> None:
        self._choices = choices
        self.wanted = self.kept = choices.first()
        """What to do now, which may be a trial; and what was fastest so far."""
        self.trials = 0
        self.resident = False
        """Every expert has a slot: there is nothing to foresee, and nothing to hide."""
        self._open = "auto" in (choices.units, choices.prediction, choices.grouping)
        self._last_ns: int | None = None
        self._rest_rounds = 0.0
        self._next_rest = FIRST_REST_ROUNDS
        self._now: _Measurement | None = None
        self._series = self._start_series()

    def interrupted(self) -> None:
        """Something else than decoding ran: the time until the next step tells nothing."""
        self._last_ns = None

    def decoded(self, now_ns: int, tokens: int, stall_ns: int, rows: int) -> None:
        """A decode step brought `tokens` and waited `stall_ns`; `rows` run now, in all units."""
        before_ns, self._last_ns = self._last_ns, now_ns
        if not self._open:
            return
        if rows < 2 and self.kept.units > 1 and self._choices.units == "auto":
            self.kept = self._with_units(1)
            self._series = self._start_series()
        elif before_ns is not None:
            self._count(_Measurement(rows, tokens / max(rows, 1), tokens, now_ns - before_ns, stall_ns))

    def _count(self, step: _Measurement) -> None:
        if self._rest_rounds > 0:
            self._rest_rounds -= step.rounds
            if self._rest_rounds <= 0:
                self._series = self._start_series()
            return
        if self._now is None or not self._now.comparable(step.rows):
            self._now = _Measurement(step.rows)
        now = self._now
        now.rounds += step.rounds
        if now.rounds <= WARM_UP_ROUNDS:
            return
        now.tokens += step.tokens
        now.elapsed_ns += step.elapsed_ns
        now.stall_ns += step.stall_ns
        if now.rounds >= WARM_UP_ROUNDS + MEASURED_ROUNDS:
            self._now = None
            self._go_on(now)

    def _go_on(self, measured: _Measurement) -> None:
        try:
            self.wanted = self._series.send(measured)
        except _Incomparable:
            self._series = self._start_series()
        except StopIteration:
            self.wanted = self.kept
            self._rest_rounds = float(self._next_rest)
            self._next_rest = min(2 * self._next_rest, MAX_REST_ROUNDS)

    def _start_series(self) -> Generator[Mode, _Measurement, None]:
        self._now, self._rest_rounds = None, 0.0
        series = self._measure_all()
        self.wanted = next(series)
        return series

    def _measure_all(self) -> Generator[Mode, _Measurement, None]:
        """A series of trials: yields the way to measure next, is sent the measurement."""
        present = yield self.kept
        for change in (self._other_units, self._other_prediction, self._other_grouping):
            other = change(present)
            if other is None:
                continue
            self.trials += 1
            measured = yield other
            _require_comparable(present, measured)
            if measured.rate > WORTH_IT * present.rate:
                present = yield self.kept  # again: perhaps it was the machine that changed
                _require_comparable(present, measured)
                if measured.rate > WORTH_IT * present.rate:
                    self.kept, present, self._next_rest = other, measured, FIRST_REST_ROUNDS

    def _other_units(self, present: _Measurement) -> Mode | None:
        if self._choices.units != "auto" or present.rows < 2:
            return None
        if self.kept.units > 1:
            return self._with_units(1)
        return self._with_units(2) if present.stalls else None

    def _other_prediction(self, present: _Measurement) -> Mode | None:
        if self._choices.prediction != "auto" or self.resident:
            return None
        return replace(self.kept, prediction=not self.kept.prediction)

    def _other_grouping(self, present: _Measurement) -> Mode | None:
        if self._choices.grouping != "auto" or self.resident or self.kept.units < 2 or present.rows < 3:
            return None
        return replace(self.kept, grouping=not self.kept.grouping)

    def _with_units(self, units: int) -> Mode:
        """Rows of a single unit cannot change places."""
        auto = self._choices.grouping == "auto"
        return replace(self.kept, units=units, grouping=self.kept.grouping and not (auto and units == 1))


def _require_comparable(present: _Measurement, measured: _Measurement) -> None:
    if not present.comparable(measured.rows):
        raise _Incomparable

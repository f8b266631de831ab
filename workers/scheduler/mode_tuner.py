"""Choice of the mode of decoding by measured speed: units in flight, prediction on or off, regrouping on or off.

Two units let the loader fill the experts of one while the other computes, but an expert that both need runs twice.
Predictions and hints hide loading, and cost processor time and needless loads. Regrouped units share more experts, and
have to wait for each other. So each change is tried against the present mode for some rounds, and the faster mode is
kept. A round is one token for every row. Trials become rarer while they change nothing.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace

MEASURED_ROUNDS = 8
WARM_UP_ROUNDS = 2
FIRST_REST_ROUNDS = 128
MAX_REST_ROUNDS = 4096
MIN_STALL_SHARE = 0.03
"""Share of the time that must be stalls before a second unit is tried."""
MIN_SPEEDUP = 1.03
"""Ratio of rates from which another mode counts as faster."""
MAX_ROW_DIFFERENCE = 0.25
"""Largest difference between numbers of rows, as a share, at which rates are compared."""
UNITS = {"one": 1, "two": 2, "three": 3, "four": 4}


@dataclass(frozen=True, slots=True)
class Mode:
    """A mode of decoding."""

    units: int = 1
    """Units in flight."""
    prediction: bool = True
    """Steps are predicted and hinted."""
    grouping: bool = False
    """Rows change units where that saves experts (see `Regrouper`)."""


@dataclass(frozen=True, slots=True)
class ModeChoices:
    """Modes that the configuration allows; `auto` leaves the choice to the tuner. Fields as in `Config`."""

    units: str = "auto"
    prediction: str = "on"
    grouping: str = "off"

    def initial_mode(self) -> Mode:
        """Return the mode until something is measured."""
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
        """Return tokens per nanosecond."""
        return self.tokens / max(1, self.elapsed_ns)

    @property
    def stalls(self) -> bool:
        return self.stall_ns >= MIN_STALL_SHARE * max(1, self.elapsed_ns)

    def comparable(self, rows: int) -> bool:
        return abs(rows - self.rows) <= MAX_ROW_DIFFERENCE * self.rows


class _Incomparable(Exception):
    """The number of rows changed between two measurements."""


class ModeTuner:
    """Measures every decode step, and decides which mode is `wanted`."""

    def __init__(self, choices: ModeChoices) -> None:
        self._choices = choices
        self.wanted = self.best = choices.initial_mode()
        """`wanted`: the mode for now, which may be a trial. `best`: the fastest mode so far."""
        self.trials = 0
        self.resident = False
        """Every expert has a slot: there is nothing to predict or to hide."""
        self._open = "auto" in (choices.units, choices.prediction, choices.grouping)
        self._last_ns: int | None = None
        self._rest_rounds = 0.0
        self._next_rest = FIRST_REST_ROUNDS
        self._now: _Measurement | None = None
        self._series = self._start_series()

    def on_interruption(self) -> None:
        """Ignore the time until the next step: something else than decoding ran."""
        self._last_ns = None

    def on_decode_step(self, now_ns: int, tokens: int, stall_ns: int, rows: int) -> None:
        """Record a decode step with `tokens` new tokens, `stall_ns` of it stalls; `rows` run now, in all units."""
        before_ns, self._last_ns = self._last_ns, now_ns
        if not self._open:
            return
        if rows < 2 and self.best.units > 1 and self._choices.units == "auto":
            self.best = self._with_units(1)
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
            self._advance_series(now)

    def _advance_series(self, measured: _Measurement) -> None:
        try:
            self.wanted = self._series.send(measured)
        except _Incomparable:
            self._series = self._start_series()
        except StopIteration:
            self.wanted = self.best
            self._rest_rounds = float(self._next_rest)
            self._next_rest = min(2 * self._next_rest, MAX_REST_ROUNDS)

    def _start_series(self) -> Generator[Mode, _Measurement, None]:
        self._now, self._rest_rounds = None, 0.0
        series = self._measure_all()
        self.wanted = next(series)
        return series

    def _measure_all(self) -> Generator[Mode, _Measurement, None]:
        """Run one series of trials: yield the mode to measure next, receive its measurement."""
        present = yield self.best
        for change in (self._other_units, self._other_prediction, self._other_grouping):
            other = change(present)
            if other is None:
                continue
            self.trials += 1
            measured = yield other
            _require_comparable(present, measured)
            if measured.rate > MIN_SPEEDUP * present.rate:
                present = yield self.best  # measure again: the machine may have changed
                _require_comparable(present, measured)
                if measured.rate > MIN_SPEEDUP * present.rate:
                    self.best, present, self._next_rest = other, measured, FIRST_REST_ROUNDS

    def _other_units(self, present: _Measurement) -> Mode | None:
        if self._choices.units != "auto" or present.rows < 2:
            return None
        if self.best.units > 1:
            return self._with_units(1)
        return self._with_units(2) if present.stalls else None

    def _other_prediction(self, present: _Measurement) -> Mode | None:
        if self._choices.prediction != "auto" or self.resident:
            return None
        return replace(self.best, prediction=not self.best.prediction)

    def _other_grouping(self, present: _Measurement) -> Mode | None:
        if self._choices.grouping != "auto" or self.resident or self.best.units < 2 or present.rows < 3:
            return None
        return replace(self.best, grouping=not self.best.grouping)

    def _with_units(self, units: int) -> Mode:
        """Return the best mode with so many units; a single unit cannot regroup."""
        auto = self._choices.grouping == "auto"
        return replace(self.best, units=units, grouping=self.best.grouping and not (auto and units == 1))


def _require_comparable(present: _Measurement, measured: _Measurement) -> None:
    if not present.comparable(measured.rows):
        raise _Incomparable

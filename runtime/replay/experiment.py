"""Policies side by side: counted (event-atomic), or timed with the loader's ledger and compute's holdings."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import msgspec

from ...workers.loader.ledger import Ledger
from ...workers.loader.policies import Policy, make_policy
from .atomic import CountedOutcome, Sharing, StepHints, make_cache, replay
from .future import Belady, Sch
from .machine import Machine, Timings
from .predictions import LayerHints, PredictionSource
from .source import ReplaySource
from .timed import TimedOutcome, replay_timed

SCH_STEPS = 16
BELADY, SCH = "belady", f"sch({SCH_STEPS})"
BOUNDS = (BELADY, SCH)
"""Policies that know the future. They are only counted, without hints."""


class ReplayRow(msgspec.Struct, frozen=True, kw_only=True):
    """Result of one policy with one number of slots. None: this kind of replay does not measure it."""

    policy: str
    slots: int
    """Slots of all layers together."""
    accesses: int
    """Distinct experts of each layer and step, summed."""
    hits: int
    hit_rate: float
    """Share of the accesses that were resident when needed."""
    loads: int | None = None
    union_of_slots: float
    """r: mean union of a layer ÷ slots of a layer."""
    prefetches: int = 0
    useful: int = 0
    wasted: int = 0
    stall_s: float | None = None
    seconds: float | None = None
    """Time of all steps, stalls included."""


class HintSource(StepHints, LayerHints, Protocol):
    """Hints for both kinds of replay."""


def no_predictions() -> PredictionSource | None:
    """Return None: there are no predictions."""
    return None


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Setting of a replay, without the policy and the slots."""

    source: ReplaySource
    sharing: Sharing
    hints: HintSource | None = None
    loads_per_layer: float = math.inf
    """Hinted experts that the link carries while a layer computes, for a replay that only counts."""
    machine: Machine | None = None
    """Machine of a timed replay; None: only count."""
    timings: Timings | None = None
    """Times of compute, instead of the machine's."""
    rank_victims: str = "auto"
    """The loader's use of predictions, as in the configuration; for timed replay."""
    uncalibrated: bool = False
    make_predictions: Callable[[], PredictionSource | None] = no_predictions
    """Makes the predictions of one run, since they learn from it; for timed replay."""

    def run(self, name: str, slots: int) -> ReplayRow:
        """Run one policy or bound with `slots` slots in all."""
        if self.machine is None or name in BOUNDS:
            return self._counted(name, slots)
        return self._timed(name, slots, self.machine)

    def _counted(self, name: str, slots: int) -> ReplayRow:
        uses, bound = self.source.uses, name in BOUNDS
        outcome = replay(
            uses,
            self._policy(name),
            make_cache(self.sharing, uses, slots),
            bypass=name == BELADY,
            hints=None if bound else self.hints,
            loads_per_layer=self.loads_per_layer,
        )
        return _row_of_counts(name, outcome)

    def _timed(self, name: str, slots: int, machine: Machine) -> ReplayRow:
        program = self.source.program
        shape = program.layers, program.experts, program.top_k
        policy = make_policy(name, *shape)
        ledger = Ledger(
            slots,
            *shape,
            policy,
            fills_in_flight=2 * machine.readers,  # as in the loader
            by_layer=self.sharing == "layer",
            rank_victims=self.rank_victims,
            uncalibrated=self.uncalibrated,
        )
        predictions = self.make_predictions()
        outcome = replay_timed(
            program, ledger, slots, machine, timings=self.timings, hints=self.hints, predictions=predictions
        )
        return _row_of_times(name, slots, outcome)

    def _policy(self, name: str) -> Policy:
        if name == BELADY:
            return Belady(self.source.uses)
        if name == SCH:
            return Sch(self.source.uses, SCH_STEPS)
        trace = self.source.trace
        return make_policy(name, trace.layers, trace.expert_count, trace.top_k)


def recorded_row(source: ReplaySource) -> ReplayRow | None:
    """Return what the engine counted and measured when it recorded the trace; None: unknown."""
    if source.log is None or source.log_indices is None:
        return None
    log, log_indices = source.log, source.log_indices
    hits, misses = int(log.hits[log_indices].sum()), int(log.misses[log_indices].sum())
    return ReplayRow(
        policy="(recorded)",
        slots=log.header.slots,
        accesses=hits + misses,
        hits=hits,
        hit_rate=hits / max(hits + misses, 1),
        union_of_slots=(hits + misses) / len(log_indices) / max(log.header.slots, 1),
        stall_s=float(log.stall_ns[log_indices].sum()) / 1e9,
        seconds=float((log.started_ns + log.busy_ns)[log_indices].max() - log.started_ns[log_indices].min()) / 1e9,
    )


def _row_of_counts(name: str, outcome: CountedOutcome) -> ReplayRow:
    return ReplayRow(
        policy=name,
        slots=outcome.slots,
        accesses=outcome.accesses,
        hits=outcome.hits,
        hit_rate=outcome.hit_rate,
        loads=outcome.loads,
        union_of_slots=outcome.pressure,
        prefetches=outcome.prefetches,
        useful=outcome.useful,
        wasted=outcome.wasted,
    )


def _row_of_times(name: str, slots: int, outcome: TimedOutcome) -> ReplayRow:
    accesses = outcome.hits + outcome.misses
    return ReplayRow(
        policy=name,
        slots=slots,
        accesses=accesses,
        hits=outcome.hits,
        hit_rate=outcome.hit_rate,
        loads=outcome.ledger.loads,
        union_of_slots=accesses / max(outcome.steps, 1) / slots,
        prefetches=outcome.ledger.prefetches,
        useful=outcome.ledger.useful,
        wasted=outcome.ledger.wasted,
        stall_s=outcome.stall_ns / 1e9,
        seconds=outcome.total_ns / 1e9,
    )

"""Policies side by side: counted (event-atomic), or timed with the loader's ledger and compute's holdings."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import msgspec

from ...workers.loader.ledger import Ledger
from ...workers.loader.policies import Policy, make_policy
from .atomic import Hints, Outcome, Sharing, make_cache, replay
from .future import Belady, Sch
from .machine import Machine, Timings
from .predictions import Hinting, Planning
from .source import ReplaySource
from .timed import TimedOutcome, replay_timed

SCH_STEPS = 16
BELADY, SCH = "belady", f"sch({SCH_STEPS})"
BOUNDS = (BELADY, SCH)
"""They know the future and are only counted, without hints."""


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """What a policy came to with so many slots. None: not known in this kind of replay."""

    policy: str
    slots: int
    """In all layers together."""
    accesses: int
    """Distinct experts of each layer and step: what was activated."""
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
    """Of all steps, stalls included."""


class HintSource(Hints, Hinting, Protocol):
    """For both kinds of replay."""


def no_plans() -> Planning | None:
    """Nothing is forecast."""
    return None


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Everything but the policy and the slots."""

    source: ReplaySource
    sharing: Sharing
    hints: HintSource | None = None
    loads_per_layer: float = math.inf
    """Hinted experts that the link carries while a layer computes, where replay only counts."""
    machine: Machine | None = None
    """What to time on; None: only count."""
    timings: Timings | None = None
    """Of compute, instead of the machine's own."""
    rank_victims: str = "auto"
    """What the loader makes of plans and hints, as in the configuration; where replay is timed."""
    uncalibrated: bool = False
    make_plans: Callable[[], Planning | None] = no_plans
    """Afresh for every run, since it learns. Only where replay is timed."""

    def run(self, name: str, slots: int) -> Row:
        """One policy, or bound."""
        if self.machine is None or name in BOUNDS:
            return self._counted(name, slots)
        return self._timed(name, slots, self.machine)

    def _counted(self, name: str, slots: int) -> Row:
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

    def _timed(self, name: str, slots: int, machine: Machine) -> Row:
        program = self.source.program
        shape = program.layers, program.experts, program.top_k
        policy = make_policy(name, *shape)
        ledger = Ledger(
            slots,
            *shape,
            policy,
            fills_in_flight=2 * machine.readers,  # as the loader has them
            by_layer=self.sharing == "layer",
            rank_victims=self.rank_victims,
            uncalibrated=self.uncalibrated,
        )
        plans = self.make_plans()
        outcome = replay_timed(program, ledger, slots, machine, timings=self.timings, hints=self.hints, plans=plans)
        return _row_of_times(name, slots, outcome)

    def _policy(self, name: str) -> Policy:
        if name == BELADY:
            return Belady(self.source.uses)
        if name == SCH:
            return Sch(self.source.uses, SCH_STEPS)
        trace = self.source.trace
        return make_policy(name, trace.layers, trace.expert_count, trace.top_k)


def recorded_row(source: ReplaySource) -> Row | None:
    """What the engine itself counted and measured when the trace was recorded; None: that is not known."""
    if source.log is None or source.places is None:
        return None
    log, places = source.log, source.places
    hits, misses = int(log.hits[places].sum()), int(log.misses[places].sum())
    return Row(
        policy="(recorded)",
        slots=log.header.slots,
        accesses=hits + misses,
        hits=hits,
        hit_rate=hits / max(hits + misses, 1),
        union_of_slots=(hits + misses) / len(places) / max(log.header.slots, 1),
        stall_s=float(log.stall_ns[places].sum()) / 1e9,
        seconds=float((log.started_ns + log.busy_ns)[places].max() - log.started_ns[places].min()) / 1e9,
    )


def _row_of_counts(name: str, outcome: Outcome) -> Row:
    return Row(
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


def _row_of_times(name: str, slots: int, outcome: TimedOutcome) -> Row:
    accesses = outcome.hits + outcome.misses
    return Row(
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

"""Faults planted in the real cores, each of which some history must bring to light, or the checks prove nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from expertflow.ipc.messages import RequestRow, ResidentTable
from expertflow.ipc.stage.events import PeerJoined
from expertflow.ipc.stage.stage import Stage
from expertflow.runtime.client.request import ClientRequest
from expertflow.runtime.client.session import EngineSession
from expertflow.runtime.engine.roster import Roster
from expertflow.runtime.engine.watchdog import Hang, Watchdog
from expertflow.tests.simulation.executor import SimulatedCompute
from expertflow.tests.simulation.wires import SimulatedLink
from expertflow.workers.compute.experts.holdings import Holdings
from expertflow.workers.loader.ledger import Ledger
from expertflow.workers.loader.slots import Owner, Slot, SlotTable
from expertflow.workers.predictor.state import PredictorState
from expertflow.workers.scheduler.request_frontend import RequestFrontend
from expertflow.workers.scheduler.requests import RequestLedger, RequestState
from expertflow.workers.scheduler.state import SchedulerState
from expertflow.workers.scheduler.stepper import Stepper
from expertflow.workers.scheduler.units import UnitState
from expertflow.workers.scheduler.waiting_queue import WaitingQueue


@dataclass(frozen=True)
class Mutant:
    """One fault: `mutant` takes the place of the attribute `attribute` of `where`."""

    core: str
    where: Any
    attribute: str
    mutant: Callable[..., Any]
    seed: int = 0
    """A history that catches it."""

    @property
    def name(self) -> str:
        return self.mutant.__name__

    @property
    def fault(self) -> str:
        """Return what is wrong, in words."""
        return (self.mutant.__doc__ or "").strip().rstrip(".")


@contextmanager
def planted(mutant: Mutant) -> Iterator[None]:
    """Let the core have the fault."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(mutant.where, mutant.attribute, mutant.mutant)
        yield


# Links


def go_on_after_a_cut(self: SimulatedLink) -> None:
    """A connection that broke is used on, as if nothing had been lost."""


# Scheduler


def start_over(self: RequestState, *prefix: Any) -> RequestRow:
    """After a death, random numbers start again."""
    chunk, cached, blocks = prefix or (0, 0, ())
    row = real_row(self, chunk, cached, blocks)
    return RequestRow(row.number, row.token_ids, 0, row.sampling, chunk=row.chunk, cached=row.cached, blocks=row.blocks)


def forget_the_lost(self: WaitingQueue, requests: list[RequestState]) -> None:
    """Requests die with compute."""


def forget_to_drop(self: UnitState, request: RequestState) -> None:
    """An ended row stays in compute."""
    self.rows.pop(request.number, None)


def answer_the_old_connection(self: RequestLedger, request: RequestState, identity: bytes) -> None:
    """A client that reconnected is answered where it was before."""


def count_from_zero(self: Stepper, first_number: int, prediction_requests: Any = None) -> None:
    """Steps of a new scheduler have the numbers of the old one's."""
    real_stepper(self, 0, prediction_requests)


def run_again(self: RequestFrontend, identity: bytes, submit: Any) -> None:
    """A request that is submitted again is run beside itself."""


def wait_for_the_dead(self: SchedulerState) -> list[Any]:
    """Rows of a dead compute are waited for."""
    return []


def finish_short(self: RequestFrontend, request: RequestState, reason: str, now_ns: int) -> list[Any]:
    """The end of a request is sent without its last token."""
    if len(request.tokens) > 1:
        request.tokens = request.tokens[:-1]
    return real_finish(self, request, reason, now_ns)


# Predictor


def predict_too_soon(self: PredictorState, rows: list[int]) -> int:
    """A prediction does not wait for the routing of the tokens before."""
    return -1


def predict_the_past(self: PredictorState, request: Any) -> bool:
    """Steps that have run are predicted."""
    return True


# Ledger


def forget_filling(self: SlotTable, key: int, urgent: bool) -> Slot:
    """A slot that is being filled is handed out again."""
    slot = real_start(self, key, urgent)
    self.free[slot.number] = slot
    return slot


def keep_recalls_of_the_dead(self: SlotTable) -> None:
    """What a dead compute was asked for is waited for."""


def keep_word_to_the_dead(self: Ledger) -> None:
    """What a dead compute held is taken for held by the new one, which does not know."""


def fill_before_hearing(self: Ledger, *arguments: Any, **options: Any) -> None:
    """A new loader fills slots before it knows what compute holds (R9)."""
    real_ledger(self, *arguments, **options)
    self._table_received = True


def ignore_open_miss(self: Ledger, table: ResidentTable) -> None:
    """A new loader does not read what compute waits for."""
    real_resident_table(self, ResidentTable(table.slots))


def release_what_fills(self: Ledger) -> None:
    """With a new compute, slots that are being filled count as free."""
    for slot in list(self._table.filling.values()):
        self._table.release(slot)
    real_compute_joined_ledger(self)


def forget_misses_under_way(self: Ledger, done: Any) -> None:
    """The end of a fill is not announced if compute waits for something else."""
    slot = self._slot(done.slot, Owner.FILLING)
    if slot is None:
        return
    was_missing = slot.key in self._missing
    self._missing.pop(slot.key, None)
    self._table.hold(slot)
    if was_missing or not self._missing:
        self._actions.announce(slot)


# Holdings and residency


def give_pinned(self: Holdings) -> list[Any]:
    """Slots are given back while a kernel reads them."""
    running, self._running = self._running, {}
    actions = real_release_due(self)
    self._running = running
    return actions


def hoard(self: Holdings) -> list[Any]:
    """Nothing is given back before the layer's end (R4)."""
    return [] if self._missing or self._running else real_release_due(self)


def keep_silent(self: Holdings) -> list[Any]:
    """A new loader is not told what compute waits for."""
    self._due.clear()
    return [ResidentTable(self.table())]


def give_and_keep(self: Holdings, slot: int) -> None:
    """A slot is given back and used on."""
    self._due.pop(slot, None)


def tell_nothing(self: SimulatedCompute, events: list[Any]) -> None:
    """A new loader is told nothing at all."""
    real_handle_events(self, [each for each in events if not (isinstance(each, PeerJoined) and each.stage == "loader")])


def run_steps_of_the_dead(self: SimulatedCompute, events: list[Any]) -> None:
    """Steps that a dead scheduler had sent are run after its successor has come."""
    steps = list(self._steps)
    real_handle_events(self, events)
    if any(isinstance(event, PeerJoined) and event.stage == "scheduler" for event in events):
        self._steps.extend(steps)


def know_the_first_only(self: Stage, peer: Any) -> bool:
    """A stage opens no link to the successor of a peer."""
    return peer.stage not in self._peers and real_open_link(self, peer)


# Session


def sleep_through(self: EngineSession) -> None:
    """A reconnect changes nothing."""


def lose_under_way(self: EngineSession) -> None:
    """What was under way is forgotten at a reconnect."""
    self._under_way.clear()


def keep_ended(self: EngineSession, request_id: str) -> ClientRequest | None:
    """An ended request stays under way, and is submitted again."""
    return self._under_way.get(request_id)


def append_all(self: ClientRequest, token_ids: list[int], offset: int, logprobs: list[Any]) -> bool:
    """Tokens that come again are appended again."""
    self.tokens += token_ids
    return bool(token_ids)


def cancel_at_once(self: EngineSession, request: ClientRequest) -> None:
    """A cancelled request ends at once, and again with the scheduler's answer."""
    if not request.ended:
        request.end_here("cancelled")


def drop_the_busy(self: EngineSession, request: ClientRequest, now_ns: int) -> None:
    """A request that a busy engine refused is forgotten."""


# Roster


def give_up_early(self: Roster, stage: str, end: Any, now_s: float) -> list[Any]:
    """The engine ends at the restart limit, not beyond it."""
    self._restart_limit -= 1
    actions = real_on_died(self, stage, end, now_s)
    self._restart_limit += 1
    return actions


def never_give_up(self: Roster, stage: str, end: Any, now_s: float) -> list[Any]:
    """A stage that dies over and over is restarted for ever."""
    self.members[stage].deaths.clear()
    return real_on_died(self, stage, end, now_s)


def introduce_one_way(self: Roster, stage: str, facts: Any, now_s: float) -> list[Any]:
    """A new stage hears of its peers, and they do not hear of it."""
    actions = real_on_ready(self, stage, facts, now_s)
    return actions if self.members[stage].epoch == 1 else actions[1::2]


def keep_the_dead_ready(self: Roster, stage: str, now_s: float) -> Any:
    """A dead stage counts as ready until its successor is."""
    facts = self.members[stage].facts
    spawn = real_spawn(self, stage, now_s)
    self.members[stage].facts = facts
    return spawn


def wait_for_ever(self: Roster, now_s: float) -> list[Any]:
    """A stage that does not become ready is waited for."""
    return []


def same_epoch(self: Roster, stage: str, now_s: float) -> Any:
    """A restarted stage has the epoch of the dead one."""
    member = self.members[stage]
    member.epoch = max(member.epoch - 1, 0)
    return real_spawn(self, stage, now_s)


# Watchdog


def hear_silence(self: Watchdog, now_s: float) -> Hang | None:
    """A stage that says nothing is left alone."""


def trust_publishers(self: Watchdog, now_s: float) -> Hang | None:
    """A stage that publishes and does nothing is left alone."""


def blame_the_waiter(self: Watchdog, stage: str) -> list[str]:
    """The first of a wait chain is ended, not the last (R10)."""
    return real_wait_chain(self, stage)[::-1]


def ignore_gaps(self: Watchdog, now_s: float) -> list[Hang]:
    """Time in which the whole machine stood still counts."""
    self._checked_s = now_s
    return real_check(self, now_s)


def remember_no_wait(self: Watchdog, stats: Any, now_s: float) -> None:
    """A wait counts from the stage's last progress, not from its own begin."""
    real_on_stats(self, stats, now_s)
    activity = self._stages.get(stats.stage)
    if activity is not None:
        activity.waits_since_s = 0.0


real_row, real_finish = RequestState.row, RequestFrontend.finish
real_stepper = Stepper.__init__
real_start, real_ledger = SlotTable.start, Ledger.__init__
real_resident_table, real_compute_joined_ledger = Ledger._on_resident_table, Ledger._on_compute_joined
real_release_due, real_handle_events, real_open_link = (
    Holdings._release_due, SimulatedCompute._handle_events, Stage._open_link,
)  # fmt: skip
real_on_died, real_on_ready, real_spawn = Roster.on_died, Roster.on_ready, Roster._spawn
real_wait_chain, real_check, real_on_stats = Watchdog._wait_chain, Watchdog.check, Watchdog.on_stats

MUTANTS = [
    Mutant("scheduler", RequestState, "row", start_over, 6),
    Mutant("scheduler", WaitingQueue, "put_back", forget_the_lost, 11),
    Mutant("scheduler", UnitState, "leave", forget_to_drop, 8),
    Mutant("scheduler", RequestLedger, "assign_client", answer_the_old_connection, 35),
    Mutant("scheduler", Stepper, "__init__", count_from_zero, 0),
    Mutant("scheduler", RequestFrontend, "repeat", run_again, 35),
    Mutant("scheduler", SchedulerState, "_requeue_all", wait_for_the_dead, 8),
    Mutant("scheduler", RequestFrontend, "finish", finish_short, 0),
    Mutant("predictor", PredictorState, "_awaited_step", predict_too_soon, 41),
    Mutant("predictor", PredictorState, "still_useful", predict_the_past, 153),
    Mutant("ledger", SlotTable, "start", forget_filling, 0),
    Mutant("ledger", SlotTable, "void_recalls", keep_recalls_of_the_dead, 11),
    Mutant("ledger", Ledger, "_on_compute_joined", keep_word_to_the_dead, 5),
    Mutant("ledger", Ledger, "__init__", fill_before_hearing, 4),
    Mutant("ledger", Ledger, "_on_resident_table", ignore_open_miss, 0),
    Mutant("ledger", Ledger, "_on_compute_joined", release_what_fills, 249),
    Mutant("ledger", Ledger, "_on_fill_done", forget_misses_under_way, 5),
    Mutant("holdings", Holdings, "_release_due", give_pinned, 0),
    Mutant("holdings", Holdings, "_release_due", hoard, 0),
    Mutant("holdings", Holdings, "_on_loader_joined", keep_silent, 0),
    Mutant("holdings", Holdings, "_forget", give_and_keep, 0),
    Mutant("shells", SimulatedCompute, "_handle_events", tell_nothing, 0),
    Mutant("shells", SimulatedCompute, "_handle_events", run_steps_of_the_dead, 482),
    Mutant("shells", Stage, "_open_link", know_the_first_only, 0),
    Mutant("links", SimulatedLink, "require_whole", go_on_after_a_cut, 54),
    Mutant("session", EngineSession, "on_reconnect", sleep_through, 6),
    Mutant("session", EngineSession, "on_reconnect", lose_under_way, 6),
    Mutant("session", EngineSession, "_remove", keep_ended, 21),
    Mutant("session", ClientRequest, "add_output", append_all, 0),
    Mutant("session", EngineSession, "cancel", cancel_at_once, 9),
    Mutant("session", EngineSession, "_try_later", drop_the_busy, 57),
    Mutant("roster", Roster, "on_died", give_up_early, 78),
    Mutant("roster", Roster, "on_died", never_give_up, 78),
    Mutant("roster", Roster, "on_ready", introduce_one_way, 0),
    Mutant("roster", Roster, "_spawn", keep_the_dead_ready, 104),
    Mutant("roster", Roster, "check_timeouts", wait_for_ever, 104),
    Mutant("roster", Roster, "_spawn", same_epoch, 0),
    Mutant("watchdog", Watchdog, "_find_silent", hear_silence, 1),
    Mutant("watchdog", Watchdog, "_find_stuck", trust_publishers, 61),
    Mutant("watchdog", Watchdog, "_wait_chain", blame_the_waiter, 61),
    Mutant("watchdog", Watchdog, "check", ignore_gaps, 13),
    Mutant("watchdog", Watchdog, "on_stats", remember_no_wait, 195),
]

"""Requests of watchers to the supervisors of one engine or of a group: snapshots, history, activity, kills."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from types import TracebackType
from typing import TypeVar

from ...errors import EngineError
from ...ipc.messages import (
    Activity,
    AskActivity,
    AskHistory,
    AskSnapshot,
    DrainEngine,
    History,
    HistoryPoint,
    KillStage,
    OrderEnded,
    ReloadEngine,
    Snapshot,
)
from ...ipc.messages.control import TO_WATCHER, ToWatcher
from ...ipc.transport.addresses import MONITOR
from ...ipc.transport.handshakes import Handshakes
from ...ipc.transport.link import Link
from ...ipc.transport.sockets import Context
from .address import Route, key_unknown
from .rolling_reload import Changes, Member, reload_in_turn
from .snapshots import combine_snapshots, device_of, engine_name

_POLL_MS = 100
_NAME_S = 10.0
"""Longest time for an engine to say its name."""
A = TypeVar("A", History, Activity)
Order = DrainEngine | ReloadEngine
Request = AskSnapshot | AskHistory | AskActivity | Order
Outcome = Snapshot | History | Activity | OrderEnded | EngineError
_ANSWERS: dict[type[Request], type[ToWatcher]] = {
    AskSnapshot: Snapshot,
    AskHistory: History,
    AskActivity: Activity,
    DrainEngine: OrderEnded,
    ReloadEngine: OrderEnded,
}


class EngineMonitors:
    """The monitor sockets of one engine, or of all engines of a group; a context manager, owned by one thread.

    `snapshot`, `history` and `activity` wait for answers. A driver that must not block calls `ask` (or `ask_history`),
    then `answer` (or `history_answer`) again and again.
    """

    def __init__(self, context: Context, routes: Sequence[Route], is_group: bool) -> None:
        self._is_group = is_group
        self._engines = [_EngineMonitor(context, route) for route in routes]

    def __enter__(self) -> EngineMonitors:
        return self

    def __exit__(self, cls: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def snapshot(self, timeout_s: float) -> Snapshot:
        """Return the latest statistics of every stage. Raises EngineError if no engine answers within `timeout_s`."""
        self.ask(timeout_s)
        while (snapshot := self.answer()) is None:
            self._wait()
        return snapshot

    def history(self, since_ns: int, timeout_s: float) -> dict[str, list[HistoryPoint]]:
        """Return engine -> its points after `since_ns`. Raises EngineError if no engine answers within `timeout_s`."""
        self.ask_history(since_ns, timeout_s)
        while (history := self.history_answer()) is None:
            self._wait()
        return history

    def activity(self, timeout_s: float) -> dict[str, Activity]:
        """Return engine -> its activity, with the spans that these monitors have not returned yet.

        Raises EngineError if no engine answers within `timeout_s`.
        """
        for engine in self._engines:
            engine.ask(AskActivity(engine.spans_seen), timeout_s)
        while (outcomes := self._outcomes()) is None:
            self._wait()
        return _combine([each for each in outcomes if isinstance(each, Activity | EngineError)], self._is_group)

    def ask(self, timeout_s: float) -> None:
        """Send the request for a snapshot; `answer` gives up `timeout_s` later."""
        for engine in self._engines:
            engine.ask(AskSnapshot(), timeout_s)

    def ask_history(self, since_ns: int, timeout_s: float) -> None:
        """Send the request for the points after `since_ns`; `history_answer` gives up `timeout_s` later."""
        for engine in self._engines:
            engine.ask(AskHistory(since_ns), timeout_s)

    def answer(self) -> Snapshot | None:
        """Return the snapshot; None: it may still come. Raises EngineError if no engine answers."""
        outcomes = self._outcomes()
        if outcomes is None:
            return None
        snapshots = [each for each in outcomes if isinstance(each, Snapshot | EngineError)]
        return combine_snapshots(snapshots, self._is_group)

    def history_answer(self) -> dict[str, list[HistoryPoint]] | None:
        """Return engine -> points; None: they may still come. Raises EngineError if no engine answers."""
        outcomes = self._outcomes()
        if outcomes is None:
            return None
        return combine_histories([each for each in outcomes if isinstance(each, History | EngineError)], self._is_group)

    def order(self, order: Order, timeout_s: float) -> list[OrderEnded]:
        """Give an order to every engine; return the answers. Raises EngineError if one ends or gives no answer."""
        for engine in self._engines:
            engine.ask(order, timeout_s)
        while (outcomes := self._outcomes()) is None:
            self._wait()
        for outcome in outcomes:
            if isinstance(outcome, EngineError):
                raise outcome
        return [outcome for outcome in outcomes if isinstance(outcome, OrderEnded)]

    def reload(self, changes: Changes, timeout_s: float) -> None:
        """Change fields of a single engine, or of all engines of a group, one after the other (`reload_in_turn`).

        Each has `timeout_s`. Engines that have ended are left out. Raises the errors of an engine, EngineError if one
        ends meanwhile, gives no answer, or if none is left.
        """
        living = [(number, engine) for number, engine in enumerate(self._engines) if not self._is_group or engine.lives]
        if not living:
            raise EngineError("all engines have ended", "group", "Start them again")
        if not self._is_group:
            living[0][1].reload(changes, timeout_s)
            return
        members = [
            Member(engine.name(number), partial(engine.reload, timeout_s=timeout_s)) for number, engine in living
        ]
        reload_in_turn(sorted(members, key=lambda member: member.name), changes)

    def kill(self, stage: str) -> None:
        """Ask every engine to kill one of its stages (SIGKILL)."""
        for engine in self._engines:
            engine.link.send(KillStage(stage))

    def close(self, linger_ms: int = 0) -> None:
        """Close the sockets; the last messages have `linger_ms` to go out."""
        for engine in self._engines:
            engine.close(linger_ms)

    def _outcomes(self) -> list[Outcome] | None:
        outcomes = [engine.outcome() for engine in self._engines]
        ended = [outcome for outcome in outcomes if outcome is not None]
        return None if len(ended) < len(outcomes) else ended

    def _wait(self) -> None:
        for engine in self._engines:
            engine.wait()


class _EngineMonitor:
    """The monitor socket of one engine, and the outcome of the last request."""

    def __init__(self, context: Context, route: Route) -> None:
        self._route = route
        self._timeout_s = self._deadline_s = 0.0
        self._wanted: type[ToWatcher] = Snapshot
        self._outcome: Outcome | None = None
        self.spans_seen = -1
        """Number of the newest spans of an activity that was returned."""
        socket = route.open(context)
        self._handshakes = Handshakes(socket)
        socket.connect(route.endpoint(MONITOR))
        self.link: Link[ToWatcher] = Link(socket, TO_WATCHER, route.prefix(MONITOR))

    def ask(self, request: Request, timeout_s: float) -> None:
        """Send a request."""
        self.link.receive()  # late answers to an earlier request
        self._outcome, self._timeout_s, self._deadline_s = None, timeout_s, time.monotonic() + timeout_s
        self._wanted = _ANSWERS[type(request)]
        self.link.send(request)

    def outcome(self) -> Outcome | None:
        """Return the answer, or the error why none will come; None: it may still come."""
        if self._outcome is None:
            self._outcome = self._check()
        return self._outcome

    @property
    def lives(self) -> bool:
        """Return False if it is known that the engine has ended."""
        try:
            self._route.require_alive()
        except EngineError:
            return False
        return True

    def name(self, number: int) -> str:
        """Return the name of the engine in its group. Raises EngineError if it gives no answer."""
        snapshot = self._await(AskSnapshot(), _NAME_S)
        return engine_name(device_of(snapshot) if isinstance(snapshot, Snapshot) else "", number)

    def reload(self, changes: Changes, timeout_s: float) -> Changes:
        """Change fields of the engine; return their earlier values. Raises its errors, or EngineError without one."""
        answer = self._await(ReloadEngine(changes), timeout_s)
        if not isinstance(answer, OrderEnded):
            return {}
        if answer.error is not None:
            raise answer.error.to_error()
        return answer.previous

    def wait(self) -> None:
        """Wait up to 100 ms for an answer that has not come."""
        if self._outcome is None:
            self.link.socket.poll(_POLL_MS)

    def close(self, linger_ms: int) -> None:
        """Close the socket; the last messages have `linger_ms` to go out."""
        self._handshakes.close()
        self.link.close(linger_ms)

    def _await(self, request: Request, timeout_s: float) -> Outcome:
        """Return the answer to a request. Raises EngineError if none comes."""
        self.ask(request, timeout_s)
        while (outcome := self.outcome()) is None:
            self.wait()
        if isinstance(outcome, EngineError):
            raise outcome
        return outcome

    def _check(self) -> Outcome | None:
        if answers := [answer for answer in self.link.receive() if isinstance(answer, self._wanted)]:
            self._note_spans(answers[-1])
            return answers[-1]
        try:
            self._route.require_alive()
        except EngineError as end:
            return end
        self._handshakes.reconnected()
        if self._handshakes.refused:
            return key_unknown(self._route)
        if time.monotonic() < self._deadline_s:
            return None
        answer = "answer" if self._wanted is OrderEnded else self._wanted.__name__.lower()
        what = f"gave no {answer} within {self._timeout_s:g} s"
        return EngineError(what, self._route.address, "The machine may be overloaded")

    def _note_spans(self, answer: ToWatcher) -> None:
        if isinstance(answer, Activity) and answer.spans:
            self.spans_seen = answer.spans[-1].number


def combine_histories(outcomes: Sequence[History | EngineError], is_group: bool) -> dict[str, list[HistoryPoint]]:
    """Return engine -> points, without the engines that ended; a single engine is called ''.

    Raises the first EngineError if there is no history at all.
    """
    return {engine: history.decode() for engine, history in _combine(outcomes, is_group).items()}


def _combine(outcomes: Sequence[A | EngineError], is_group: bool) -> dict[str, A]:
    """Return engine -> answer, without the engines that ended. Raises the first EngineError if there is no answer."""
    errors = [outcome for outcome in outcomes if isinstance(outcome, EngineError)]
    if len(errors) == len(outcomes):
        raise errors[0] if errors else EngineError("all engines have ended", "group", "Start them again")
    found = {number: outcome for number, outcome in enumerate(outcomes) if not isinstance(outcome, EngineError)}
    if not is_group:
        return {"": found[0]}
    return {engine_name(answer.device, number): answer for number, answer in found.items()}

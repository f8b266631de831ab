"""Carries out an operator's orders in the engine's thread: a drain, or a change of the configuration."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from threading import Thread
from typing import Any, NamedTuple, Protocol

from ...errors import EngineError, ExpertFlowError
from ...ipc.messages import CloseIntake, Drain, ErrorFacts, KillStage, OrderEnded, StageStats
from .operation.changes import change_config, stages_to_restart
from .operation.drain import DrainState
from .operation.reload import (
    EndStage,
    Exchange,
    KillStarted,
    NoWayBack,
    ReloadAction,
    ReloadOver,
    ReloadState,
    StartStage,
)
from .preflight import require_files
from .resources import Resources, Setup
from .roster import GiveUp, Roster, RosterAction

TOLD = ("expert_memory", "policy", "predictor")
"""Fields of the configuration that the supervisor publishes."""
Answer = Callable[[OrderEnded], object]
"""Takes the answer to an order; called in the engine's thread."""


class DrainOrder(NamedTuple):
    """Accept nothing new, finish what was accepted within `deadline_s`, then end."""

    deadline_s: float
    answer: Answer


class ReloadOrder(NamedTuple):
    """Change these fields of the configuration."""

    changes: dict[str, Any]
    answer: Answer


EngineOrder = KillStage | Drain | DrainOrder | ReloadOrder


class StageControl(Protocol):
    """Part of the engine that the orders need."""

    def tell(self, stage: str, message: Drain | CloseIntake) -> None:
        """Send a message to a stage."""
        ...

    def perform(self, actions: list[RosterAction]) -> None:
        """Perform what the roster decided."""
        ...

    def kill_now(self, stage: str) -> None:
        """Kill a stage."""
        ...


class _Reload(NamedTuple):
    """The reload under way."""

    state: ReloadState
    before: Setup
    after: Setup
    changes: dict[str, Any]
    answer: Answer


class Orders:
    """The orders under way, at most one drain and one reload. Owned by the engine's thread."""

    def __init__(self, resources: Resources, roster: Roster, control: StageControl, log_prefix: str = "") -> None:
        self._resources, self._roster, self._control, self._log_prefix = resources, roster, control, log_prefix
        self._started_ns = time.monotonic_ns()
        self._drain: DrainState | None = None
        self._reload: _Reload | None = None
        self._answers: list[Answer] = []
        self._open = 0
        """Open requests, as the scheduler published last."""
        self._exchanged: deque[ExpertFlowError | None] = deque()
        self._exchanger: Thread | None = None

    @property
    def state(self) -> str:
        """Return what the engine does, in a word: starting, ready, draining, reloading."""
        if not self._roster.complete:
            return "starting"
        return "draining" if self._drain else "reloading" if self._reload else "ready"

    @property
    def facts(self) -> dict[str, int | float | str]:
        """Return what the supervisor itself says of the engine."""
        config = self._resources.config
        named = {name: getattr(config, name) for name in TOLD}
        return {"state": self.state, "started_ns": self._started_ns, **named}

    def drain(self, order: DrainOrder) -> None:
        """Begin to drain, or hasten the drain under way."""
        until_s = time.monotonic() + order.deadline_s
        self._answers.append(order.answer)
        if self._drain is not None:
            self._drain.hasten(until_s)
            return
        logging.getLogger(__name__).info("%sthe engine drains, for %g s at most", self._log_prefix, order.deadline_s)
        self._drain = DrainState(until_s)
        self._control.tell("scheduler", CloseIntake())

    def reload(self, order: ReloadOrder) -> None:
        """Begin a reload; what cannot be is answered at once, and nothing has changed then."""
        try:
            reload = self._plan_reload(order)
        except ExpertFlowError as error:
            order.answer(OrderEnded(ErrorFacts.of(error)))
            return
        logging.getLogger(__name__).info("%sreload: %s", self._log_prefix, _words(order.changes))
        self._reload = reload
        self._perform(reload, reload.state.begin(time.monotonic()))

    def owns(self, stage: str) -> bool:
        """Return whether the end of a stage belongs to the reload under way."""
        return self._reload is not None and self._reload.state.owns(stage)

    def on_ended(self, stage: str, end: EngineError) -> None:
        """Take the end of a stage that `owns` names."""
        if (reload := self._reload) is not None:
            now_s, cause = time.monotonic(), self._roster.cause_of(stage, end)
            self._control.perform(self._roster.on_released(stage, now_s))
            self._perform(reload, reload.state.on_ended(stage, cause, now_s))

    def on_died(self, stage: str) -> None:
        """Note that a stage died."""
        if self._drain is not None and stage == "scheduler":
            self._drain.on_scheduler_lost()

    def on_ready(self, stage: str) -> None:
        """Take the readiness of a stage."""
        if self._drain is not None and stage == "scheduler":
            self._control.tell(stage, CloseIntake())
        if (reload := self._reload) is not None:
            self._perform(reload, reload.state.on_ready(stage))

    def on_stats(self, stats: StageStats) -> None:
        """Take what a stage published."""
        if stats.stage == "scheduler":
            self._open = int(stats.counters.get("open", 0))
        if self._drain is not None:
            self._drain.on_stats(stats)

    def check(self) -> bool:
        """Go on with the orders; return whether the engine is to end, as a drain is over."""
        if (reload := self._reload) is not None:
            self._perform(reload, reload.state.check(time.monotonic()))
            while self._exchanged:
                self._on_exchanged(reload, self._exchanged.popleft())
        if self._drain is None or not self._drain.is_over(time.monotonic()):
            return False
        self._answer_drains(OrderEnded(unfinished=self._open if self._drain.open < 0 else self._drain.open))
        return True

    def close(self) -> None:
        """Answer the orders under way: the engine ends."""
        if self._exchanger is not None:
            self._exchanger.join()
        error = ErrorFacts("engine", "the engine ended before that was done", "engine", "Its output says why")
        self._answer_drains(OrderEnded(error))
        if self._reload is not None:
            self._reload.answer(OrderEnded(error))
            self._reload = None

    def _answer_drains(self, answer: OrderEnded) -> None:
        for each in self._answers:
            each(answer)
        self._answers.clear()

    def _plan_reload(self, order: ReloadOrder) -> _Reload:
        if self.state != "ready":
            raise EngineError(f"the engine is {self.state} already", "reload", "Try again when that is done")
        config = change_config(self._resources.config, order.changes)
        require_files(config)
        after, stages = self._resources.plan_setup(config), stages_to_restart(order.changes)
        members = self._roster.members
        state = ReloadState([stage for stage in stages if stage in members and members[stage].ready])
        return _Reload(state, self._resources.setup, after, order.changes, order.answer)

    def _perform(self, reload: _Reload, actions: list[ReloadAction]) -> None:
        for action in actions:
            match action:
                case EndStage(stage):
                    self._control.tell(stage, Drain())
                case KillStarted(stage):
                    self._control.kill_now(stage)
                case Exchange(forward):
                    self._exchange(reload.after if forward else reload.before)
                case StartStage(stage):
                    self._control.perform(self._roster.start_again(stage, time.monotonic()))
                case ReloadOver(error):
                    self._end_reload(reload, error)
                case NoWayBack(cause):
                    self._control.perform([GiveUp(cause)])

    def _exchange(self, setup: Setup) -> None:
        """Exchange shared memory in a thread of its own: gigabytes take seconds."""
        self._resources.drop_spares(setup)

        def exchange() -> None:
            try:
                self._resources.make_room(setup)
            except ExpertFlowError as error:
                self._exchanged.append(error)
            else:
                self._exchanged.append(None)

        self._exchanger = Thread(target=exchange, name="expertflow-exchange", daemon=True)
        self._exchanger.start()

    def _on_exchanged(self, reload: _Reload, error: ExpertFlowError | None) -> None:
        if error is None:
            self._resources.adopt(reload.after if reload.state.phase == "exchanging" else reload.before)
        self._perform(reload, reload.state.on_exchanged(error))

    def _end_reload(self, reload: _Reload, error: ExpertFlowError | None) -> None:
        self._reload = None
        before = {name: getattr(reload.before.config, name) for name in reload.changes}
        words = "reload done" if error is None else f"reload failed, the old setup is in place: {error}"
        level = logging.INFO if error is None else logging.WARNING
        logging.getLogger(__name__).log(level, "%s%s", self._log_prefix, words)
        reload.answer(OrderEnded(previous=before) if error is None else OrderEnded(ErrorFacts.of(error)))


def _words(changes: dict[str, Any]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in changes.items())

"""The supervisor's thread: one poll over the stages' words, their deaths, and whoever watches."""

from __future__ import annotations

import logging
import signal
import time
from collections import deque
from collections.abc import Collection
from contextlib import ExitStack
from queue import SimpleQueue
from threading import Thread
from typing import NamedTuple

import zmq

from ...errors import EngineError, ExpertFlowError
from ...ipc.messages import AskSnapshot, Drain, Failed, KillStage, Progress, Published, Ready
from ...ipc.messages.control import FROM_STAGE, FROM_WATCHER, FromStage
from ...ipc.stage.entry import FAILED
from ...ipc.transport.addresses import CONTROL, MONITOR, Party, socket_address
from ...ipc.transport.codec import Unreadable
from ...ipc.transport.router import Router
from ...ipc.transport.sockets import Context
from .child_set import ChildSet
from .children import Child
from .resources import Resources
from .roster import GiveUp, Kill, Roster, RosterAction, SendControl, Spawn
from .stages import StagePlan
from .status_board import StatusBoard
from .watchdog import Watchdog

LEAVE_LAST = ("loader",)
POLL_MS = 50
LAST_WORDS_S = 1.0
"""How long the words of a process that has ended may still be on their way."""


class Started(NamedTuple):
    """Every stage is ready."""


class Ended(NamedTuple):
    """The engine has ended and left nothing behind; `cause` is None if it was asked to."""

    cause: ExpertFlowError | None


News = Progress | Started | Ended


class Ladder(NamedTuple):
    """Stopping: how long stages may finish, then leave, then be dead."""

    drain_s: float
    terminate_s: float
    kill_s: float


GENTLE = Ladder(5.0, 3.0, 2.0)
ABRUPT = Ladder(0.0, 2.0, 5.0)


class Engine:
    """Runs the stages in a thread of its own until it is asked to stop or gives up; then it closes `resources`.

    `news` tells the starting of it, and always ends with `Ended`.
    """

    def __init__(self, resources: Resources, plans: list[StagePlan]) -> None:
        self.news: SimpleQueue[News] = SimpleQueue()
        self.board = StatusBoard()
        self.cause: ExpertFlowError | None = None
        self._resources = resources
        self._plans = {plan.stage: plan for plan in plans}
        config = resources.config
        self._roster = Roster({plan.stage: plan.peers for plan in plans}, config.restart_limit, config.start_timeout_s)
        self._watchdog = Watchdog(config.hang_timeout_s)
        self._hung: dict[str, str] = {}
        """Stages that are being ended, and what they did."""
        self._named = f"{config.device}: " if config.on_device else ""
        self._orders: deque[KillStage | Drain] = deque()
        self._stopping = False
        self._poller = zmq.Poller()
        self._fleet = ChildSet(self._poller)
        self._thread = Thread(target=self._run, name="expertflow-engine", daemon=True)

    # From any thread

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ask for the end; `join` waits for it."""
        self._orders.append(Drain())

    def kill(self, stage: str) -> None:
        """Kill a stage with SIGKILL; it is restarted like any dead stage."""
        self._orders.append(KillStage(stage))

    def join(self, timeout_s: float | None = None) -> bool:
        """Whether the engine has ended within this time."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    # In the engine's thread

    def _run(self) -> None:
        try:
            with self._resources:
                self._serve()
        except ExpertFlowError as error:
            self.cause = self.cause or error
        except Exception as error:  # noqa: BLE001 - the boundary of the thread: whatever it is, the user hears of it
            logging.getLogger(__name__).exception("the supervisor failed")
            self.cause = self.cause or EngineError(f"{type(error).__name__}: {error}", "supervisor", "This is a bug")
        finally:
            self.news.put(Ended(self.cause))

    def _serve(self) -> None:
        with ExitStack() as stack:
            context: Context = zmq.Context()
            stack.callback(context.destroy, 0)
            run_dir = str(self._resources.run_dir.path)
            self._control = Router(context, socket_address(run_dir, CONTROL), FROM_STAGE)
            self._monitor = Router(context, socket_address(run_dir, MONITOR), FROM_WATCHER)
            self._poller.register(self._control.socket, zmq.POLLIN)
            self._poller.register(self._monitor.socket, zmq.POLLIN)
            stack.callback(self._end)
            self._act(self._roster.start(time.monotonic()))
            while not self._stopping:
                self._turn()
                self._act(self._roster.tick(time.monotonic()))
                self._watch()

    def _turn(self) -> None:
        ready = dict(self._poller.poll(POLL_MS))
        self._hear_stages()
        self._hear_watchers()
        while self._orders:
            self._obey(self._orders.popleft())
        for child in self._fleet.take_ended(ready):
            self._reap(child)

    def _act(self, actions: list[RosterAction]) -> None:
        for action in actions:
            match action:
                case Spawn(party):
                    self._spawn(party)
                case SendControl(party, message):
                    self._control.send(party.identity, message)
                case Kill(party):
                    self._kill(party.stage)
                case GiveUp(cause):
                    self.cause = self.cause or cause
                    self._stopping = True

    def _watch(self) -> None:
        for stage, what in self._watchdog.check(time.monotonic()):
            words = "%sstage %s %s: it is ended and started again"
            logging.getLogger(__name__).warning(words, self._named, stage, what)
            self._hung[stage] = what
            self._kill(stage)

    def _spawn(self, party: Party) -> None:
        plan = self._plans[party.stage]
        child = self._resources.start(plan, party.epoch)
        self._fleet.add(child)
        self.board.started(party.stage, party.epoch, child.pid)

    def _kill(self, stage: str) -> None:
        self._fleet.signal(signal.SIGKILL, lambda child: child.stage == stage)

    # What is heard

    def _hear_stages(self) -> None:
        for identity, message in self._control.receive():
            party = Party.from_identity(identity)
            if party and self._roster.is_current(party) and not isinstance(message, Unreadable):
                self._receive(party.stage, message)

    def _receive(self, stage: str, message: FromStage) -> None:
        match message:
            case Ready(facts=facts):
                self._welcome(stage, facts)
            case Published(stats, spans):
                self.board.published(stage, stats)
                self._watchdog.on_stats(stats, time.monotonic())
                if self._resources.timeline:
                    self._resources.timeline.write(stage, spans)
            case Failed(error=error):
                self._roster.failed(stage, error)
            case Progress() if not self._roster.complete:
                self.news.put(message)

    def _welcome(self, stage: str, facts: dict[str, int | float | str]) -> None:
        was_complete = self._roster.complete
        self.board.learned(stage, facts)
        self._watchdog.ready(stage, time.monotonic())
        self._act(self._roster.ready(stage, facts, time.monotonic()))
        self._keep_spare(self._plans[stage])
        if self._roster.complete and not was_complete:
            self.news.put(Started())

    def _keep_spare(self, plan: StagePlan) -> None:
        """Of compute, which imports for longest, if that is asked for: it shall be ready for the next death."""
        resources = self._resources
        if plan.surveys and resources.config.spare_compute:
            epoch = self._roster.members[plan.stage].epoch + 1
            self.board.spare(plan.stage, resources.spares.prepare(plan, epoch, resources.survey.folder))

    def _hear_watchers(self) -> None:
        for identity, message in self._monitor.receive():
            match message:
                case AskSnapshot():
                    self._monitor.send(identity, self.board.snapshot())
                case KillStage():
                    self._obey(message)

    def _obey(self, order: KillStage | Drain) -> None:
        match order:
            case KillStage(stage):
                self._kill(stage)
            case Drain():
                self._stopping = True

    # How it ends

    def _reap(self, child: Child) -> None:
        end = self._why(child.stage, child.reap())
        if child.exit_code == FAILED:
            self._await_last_words(child.stage)
        self._resources.run_dir.remove_files_of(child.stage, child.epoch)
        self._watchdog.gone(child.stage)
        if not self._stopping:
            logging.getLogger(__name__).warning("%s%s (epoch %d)", self._named, end, child.epoch)
            self.board.died(child.stage, child.epoch)
            self._act(self._roster.died(child.stage, end, time.monotonic()))

    def _why(self, stage: str, end: EngineError) -> EngineError:
        what = self._hung.pop(stage, None)
        if what is None:
            return end
        return EngineError(f"{what} and was ended", f"stage {stage}", "Raise hang_timeout_s if it was only slow")

    def _await_last_words(self, stage: str) -> None:
        """It has said why before it ended, but what it said may still be on its way."""
        deadline = time.monotonic() + LAST_WORDS_S
        while self._roster.members[stage].failure is None and time.monotonic() < deadline:
            self._control.socket.poll(POLL_MS)
            self._hear_stages()

    def _end(self) -> None:
        """The ladder: drain, SIGTERM, SIGKILL, under one deadline. A stage that is not ready has nothing to finish."""
        self._stopping = True
        ladder = GENTLE if self._roster.complete and self.cause is None else ABRUPT
        deadline = time.monotonic() + sum(ladder)
        members = self._roster.members
        self._fleet.signal(signal.SIGKILL, lambda child: not members[child.stage].ready)
        if ladder.drain_s:
            self._drain(deadline - ladder.kill_s - ladder.terminate_s)
        self._fleet.signal(signal.SIGTERM)
        self._await_ends(deadline - ladder.kill_s)
        self._fleet.signal(signal.SIGKILL)
        self._await_ends(deadline)
        while self._control.socket.poll(POLL_MS):
            self._hear_stages()

    def _drain(self, deadline: float) -> None:
        """Stages that others wait for leave last: the step that runs may still need an expert."""
        for last in (False, True):
            leaving = {stage for stage in self._plans if (stage in LEAVE_LAST) == last}
            for stage in leaving:
                self._control.send(Party(stage, self._roster.members[stage].epoch).identity, Drain())
            self._await_ends(deadline, leaving)

    def _await_ends(self, deadline: float, stages: Collection[str] | None = None) -> None:
        """Of all stages, or of these."""
        while self._fleet.has_any(stages or self._plans) and time.monotonic() < deadline:
            self._turn()

"""The supervisor's thread: one poll over messages of stages and watchers, and over the ends of processes."""

from __future__ import annotations

import logging
import signal
import time
from collections import deque
from collections.abc import Collection
from contextlib import ExitStack
from queue import SimpleQueue
from threading import Event, Lock, Thread

import zmq

from ...errors import EngineError, ExpertFlowError
from ...ipc.messages import (
    CacheHeat,
    CloseIntake,
    Drain,
    Failed,
    KillStage,
    OpenRequests,
    Progress,
    Published,
    Ready,
    Watched,
)
from ...ipc.messages.control import FROM_STAGE, FromStage
from ...ipc.stage.entry import FAILED
from ...ipc.transport.addresses import CONTROL, Party, socket_address
from ...ipc.transport.codec import Unreadable
from ...ipc.transport.router import Router
from ...ipc.transport.sockets import Context
from .children import Child, ChildSet
from .operation.updates import Ended, EngineUpdate, Started, StopTimes
from .orders import DrainOrder, EngineOrder, Orders, ReloadOrder
from .resources import Resources
from .roster import GiveUp, Kill, Roster, RosterAction, SendControl, Spawn
from .stages import StagePlan
from .status_board import StatusBoard
from .watchdog import Watchdog
from .watchers import Watchers

DRAIN_LAST = ("loader",)
"""Stages that others wait for: the running step may still need an expert."""
POLL_MS = 50
LAST_MESSAGES_S = 1.0
"""Seconds for which messages of an ended process may still be on their way."""


GENTLE = StopTimes(5.0, 3.0, 2.0)
ABRUPT = StopTimes(0.0, 2.0, 5.0)


class Engine:
    """Runs the stages in a thread of its own until it is asked to stop or gives up; then it closes `resources`.

    `updates` reports the progress of the start and always ends with `Ended`.
    """

    def __init__(self, resources: Resources, plans: list[StagePlan]) -> None:
        self.updates: SimpleQueue[EngineUpdate] = SimpleQueue()
        self.board = StatusBoard()
        self.cause: ExpertFlowError | None = None
        self.resources = resources
        self._plans = {plan.stage: plan for plan in plans}
        config = resources.config
        self._roster = Roster({plan.stage: plan.peers for plan in plans}, config.restart_limit, config.start_timeout_s)
        self._watchdog = Watchdog(config.hang_timeout_s)
        self._hung: dict[str, str] = {}
        """Hung stages that were killed and have not ended yet -> description of the hang."""
        self._log_prefix = f"{config.device}: " if config.on_device else ""
        self._orders = Orders(resources, self._roster, self, self._log_prefix)
        self._requests: deque[EngineOrder] = deque()
        self._stopping = False
        self._poller = zmq.Poller()
        self._children = ChildSet(self._poller)
        self._begun = Lock()
        """Taken once and for all: by the thread, or by a `join` that finds it not started."""
        self._ended = Event()
        self._thread = Thread(target=self._run, name="expertflow-engine", daemon=True)

    # From any thread

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ask for the end; `join` waits for it."""
        self._requests.append(Drain())

    def kill(self, stage: str) -> None:
        """Kill a stage with SIGKILL; it is restarted like any dead stage."""
        self._requests.append(KillStage(stage))

    def order(self, order: EngineOrder) -> None:
        """Give an order; the answer to it comes in the engine's thread."""
        self._requests.append(order)

    def join(self, timeout_s: float | None = None) -> bool:
        """Wait for the end; return whether the engine has ended within `timeout_s`.

        A `Thread.join` that Ctrl-C interrupts takes the thread for ended, and the next one would not wait.
        """
        if self._thread.ident is None and self._begun.acquire(blocking=False):  # Ctrl-C interrupted the start
            self.resources.close()
            self._ended.set()
        return self._ended.wait(timeout_s)

    # In the engine's thread

    def _run(self) -> None:
        if not self._begun.acquire(blocking=False):
            return
        try:
            with self.resources:
                self._serve()
        except ExpertFlowError as error:
            self.cause = self.cause or error
        except Exception as error:  # noqa: BLE001 - the boundary of the thread: the user gets any error
            logging.getLogger(__name__).exception("the supervisor failed")
            self.cause = self.cause or EngineError(f"{type(error).__name__}: {error}", "supervisor", "This is a bug")
        finally:
            self.updates.put(Ended(self.cause))
            self._ended.set()

    def _serve(self) -> None:
        with ExitStack() as stack:
            context: Context = zmq.Context()
            stack.callback(context.destroy, 0)
            run_dir = str(self.resources.run_dir.path)
            self._control = Router(context, socket_address(run_dir, CONTROL), FROM_STAGE)
            self._watchers = Watchers(context, run_dir, self.board, self._tell_stages)
            self._poller.register(self._control.socket, zmq.POLLIN)
            self._poller.register(self._watchers.socket, zmq.POLLIN)
            stack.callback(self._stop_stages)
            stack.callback(self._orders.close)
            self.perform(self._roster.start(time.monotonic()))
            while not self._stopping:
                self._poll()
                self.perform(self._roster.check_timeouts(time.monotonic()))
                self._kill_hung()
                self._stopping = self._orders.check() or self._stopping

    def _poll(self) -> None:
        ready = dict(self._poller.poll(POLL_MS))
        self._receive_from_stages()
        self._requests += self._watchers.receive()
        while self._requests:
            self._handle_request(self._requests.popleft())
        for child in self._children.take_ended(ready):
            self._on_end(child)
        self.board.set_state(self._orders.facts)
        self.board.tick()

    def perform(self, actions: list[RosterAction]) -> None:
        for action in actions:
            match action:
                case Spawn(party):
                    self._spawn(party)
                case SendControl(party, message):
                    self._control.send(party.identity, message)
                case Kill(party):
                    self.kill_now(party.stage)
                case GiveUp(cause):
                    self.cause = self.cause or cause
                    self._stopping = True

    def _kill_hung(self) -> None:
        for stage, what in self._watchdog.check(time.monotonic()):
            words = "%sstage %s %s: it is killed and restarted"
            logging.getLogger(__name__).warning(words, self._log_prefix, stage, what)
            self._hung[stage] = what
            self.kill_now(stage)

    def _spawn(self, party: Party) -> None:
        plan = self._plans[party.stage]
        child = self.resources.start(plan, party.epoch)
        self._children.add(child)
        self.board.on_started(party.stage, party.epoch, child.pid)
        words = "%sstage %s starts (epoch %d, pid %d)"
        logging.getLogger(__name__).info(words, self._log_prefix, party.stage, party.epoch, child.pid)

    def kill_now(self, stage: str) -> None:
        self._children.signal(signal.SIGKILL, lambda child: child.stage == stage)

    # Messages

    def _receive_from_stages(self) -> None:
        for identity, message in self._control.receive():
            party = Party.from_identity(identity)
            if party and self._roster.is_current(party) and not isinstance(message, Unreadable):
                self._on_message(party.stage, message)

    def _on_message(self, stage: str, message: FromStage) -> None:
        match message:
            case Ready(facts=facts):
                self._on_ready(stage, facts)
            case Published(stats, spans):
                self.board.on_published(stage, stats)
                self._watchdog.on_stats(stats, time.monotonic())
                self._orders.on_stats(stats)
                self._watchers.on_message(message)
                if self.resources.timeline:
                    self.resources.timeline.write(stage, spans)
            case CacheHeat() | OpenRequests():
                self._watchers.on_message(message)
            case Failed(error=error):
                self._roster.on_failed(stage, error)
            case Progress() if not self._roster.complete:
                self.updates.put(message)

    def _on_ready(self, stage: str, facts: dict[str, int | float | str]) -> None:
        was_complete = self._roster.complete
        self.board.on_ready(stage, facts)
        self._watchdog.on_ready(stage, time.monotonic())
        self.perform(self._roster.on_ready(stage, facts, time.monotonic()))
        self._orders.on_ready(stage)
        if (watched := self._watchers.watched) is not None:
            self.tell(stage, watched)
        self._prepare_spare(self._plans[stage])
        if self._roster.complete and not was_complete:
            self.updates.put(Started())
            logging.getLogger(__name__).info("%severy stage is ready", self._log_prefix)

    def _prepare_spare(self, plan: StagePlan) -> None:
        """Start the spare of compute, whose imports take longest, for its next death; only if it is configured."""
        resources = self.resources
        if plan.surveys and resources.config.spare_compute:
            epoch = self._roster.members[plan.stage].epoch + 1
            self.board.set_spare(plan.stage, resources.spares.prepare(plan, epoch, resources.survey.folder))

    def _tell_stages(self, message: Watched) -> None:
        for stage, member in self._roster.members.items():
            if member.ready:
                self.tell(stage, message)

    def tell(self, stage: str, message: Watched | Drain | CloseIntake) -> None:
        self._control.send(Party(stage, self._roster.members[stage].epoch).identity, message)

    def _handle_request(self, request: EngineOrder) -> None:
        match request:
            case KillStage(stage):
                self.kill_now(stage)
            case Drain():
                self._stopping = True
            case DrainOrder():
                self._orders.drain(request)
            case ReloadOrder():
                self._orders.reload(request)

    # Ends

    def _on_end(self, child: Child) -> None:
        reason = "hung" if child.stage in self._hung else "died"
        end = self._explain_end(child.stage, child.reap())
        if child.exit_code == FAILED:
            reason = "failed"
            self._await_failure(child.stage)
        self.resources.run_dir.remove_files_of(child.stage, child.epoch)
        self._watchdog.on_ended(child.stage)
        if not self._stopping and self._orders.owns(child.stage):
            self.board.on_released(child.stage, child.epoch)
            self._watchers.on_died(child.stage)
            self._orders.on_ended(child.stage, end)
        elif not self._stopping:
            logging.getLogger(__name__).warning("%s%s (epoch %d)", self._log_prefix, end, child.epoch)
            self.board.on_died(child.stage, child.epoch, reason)
            self._watchers.on_died(child.stage)
            self._orders.on_died(child.stage)
            self.perform(self._roster.on_died(child.stage, end, time.monotonic()))

    def _explain_end(self, stage: str, end: EngineError) -> EngineError:
        what = self._hung.pop(stage, None)
        if what is None:
            return end
        return EngineError(f"{what} and was killed", f"stage {stage}", "Raise hang_timeout_s if it was only slow")

    def _await_failure(self, stage: str) -> None:
        """Wait for the `Failed` of a stage that sent it and ended: it may still be on its way."""
        deadline = time.monotonic() + LAST_MESSAGES_S
        while self._roster.members[stage].failure is None and time.monotonic() < deadline:
            self._control.socket.poll(POLL_MS)
            self._receive_from_stages()

    def _stop_stages(self) -> None:
        """Drain, then SIGTERM, then SIGKILL, under one deadline. A stage that is not ready has nothing to finish."""
        self._stopping = True
        logging.getLogger(__name__).info("%sstages are stopped", self._log_prefix)
        times = GENTLE if self._roster.complete and self.cause is None else ABRUPT
        deadline = time.monotonic() + sum(times)
        members = self._roster.members
        self._children.signal(signal.SIGKILL, lambda child: not members[child.stage].ready)
        if times.drain_s:
            self._drain(deadline - times.kill_s - times.terminate_s)
        self._children.signal(signal.SIGTERM)
        self._await_ends(deadline - times.kill_s)
        self._children.signal(signal.SIGKILL)
        self._await_ends(deadline)
        while self._control.socket.poll(POLL_MS):
            self._receive_from_stages()

    def _drain(self, deadline: float) -> None:
        """Let the stages finish their work, those of `DRAIN_LAST` after the others."""
        for last in (False, True):
            draining = [stage for stage in self._plans if (stage in DRAIN_LAST) == last]
            for stage in draining:
                self.tell(stage, Drain())
            self._await_ends(deadline, draining)

    def _await_ends(self, deadline: float, stages: Collection[str] | None = None) -> None:
        """Wait until `stages` (default: all) have ended, at most until `deadline`."""
        while self._children.has_any(stages or self._plans) and time.monotonic() < deadline:
            self._poll()

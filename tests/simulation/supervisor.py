"""The real `Engine` (roster, watchdog, all its turns) over simulated processes."""

from __future__ import annotations

import signal
from collections import deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from expertflow.errors import EngineError
from expertflow.ipc.transport.addresses import Party
from expertflow.runtime.engine.children import ChildSet, describe_exit
from expertflow.runtime.engine.engine import Engine
from expertflow.runtime.engine.orders import Orders
from expertflow.runtime.engine.roster import GiveUp, Kill, Roster, RosterAction, Spawn
from expertflow.runtime.engine.stages import StagePlan
from expertflow.runtime.engine.watchdog import Hang, Watchdog
from expertflow.tests.simulation.current import CURRENT
from expertflow.tests.simulation.processes import SimulatedPoller, StageProcess
from expertflow.tests.simulation.wires import ENCODER, SimulatedSocket, Wire

RUN_DIR = "run"


class Descriptor:
    """Stands for a descriptor that becomes readable."""

    readable = False


class SimulatedChild:
    """Stands for `Child`."""

    def __init__(self, process: StageProcess) -> None:
        self.stage, self.epoch = process.party
        self.pid = 0
        self.pidfd = Descriptor()
        self.exit_code: int | None = None
        self._process = process

    def send(self, number: signal.Signals) -> None:
        if number == signal.SIGKILL:
            CURRENT.world.kill(self._process, draw=CURRENT.world.agenda.now_us)
        elif self._process.shell is not None and not self._process.dead:
            self._process.stage.stop(gently=False)
            self._process.wake()

    def reap(self) -> EngineError:
        assert self.exit_code is not None
        return EngineError(describe_exit(self.exit_code), f"stage {self.stage}", "")


class ControlRouter:
    """Stands for the supervisor's `Router` to its stages."""

    def __init__(self) -> None:
        self.arrived: deque[tuple[bytes, Any]] = deque()
        self.socket = SimulatedSocket(self.arrived)
        self.wires: dict[bytes, Wire] = {}

    def receive(self) -> list[tuple[bytes, Any]]:
        received = list(self.arrived)
        self.arrived.clear()
        return received

    def send(self, identity: bytes, message: Any) -> bool:
        wire = self.wires.get(identity)
        if wire is None:
            return False
        wire.carry(ENCODER.encode(message))
        return True


class Ignored:
    """Stands for the status board, the watchers and whatever else decides nothing."""

    watched = None

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: []


class SimulatedResources:
    """Stands for `Resources`: starts simulated processes."""

    timeline = None
    spares = Ignored()
    run_dir = SimpleNamespace(path=Path(RUN_DIR), remove_files_of=lambda stage, epoch: None)

    def __init__(self, config: Any) -> None:
        self.config = config

    def start(self, plan: StagePlan, epoch: int) -> SimulatedChild:
        return CURRENT.world.start_stage(Party(plan.stage, epoch))  # type: ignore[return-value]


class SimulatedEngine(Engine):
    """The real engine without thread and sockets."""

    def __init__(self, config: Any, plans: list[StagePlan]) -> None:  # the real one makes a thread and a poller
        self.updates = Ignored()  # type: ignore[assignment]
        self.board = Ignored()  # type: ignore[assignment]
        self.cause = None
        self.resources = SimulatedResources(config)  # type: ignore[assignment]
        self._plans = {plan.stage: plan for plan in plans}
        peers = {plan.stage: sorted(plan.peers) for plan in plans}  # in one order, whatever the hashes of this process
        self._roster = Roster(peers, config.restart_limit, config.start_timeout_s)
        self._watchdog = Watchdog(config.hang_timeout_s)
        self._hung = {}
        self._orders = Orders(self.resources, self._roster, self)  # type: ignore[arg-type]
        self._log_prefix = ""
        self._requests = deque()
        self._stopping = False
        self._control = ControlRouter()  # type: ignore[assignment]
        self._watchers = Ignored()  # type: ignore[assignment]

    def serve(self) -> None:
        """Start the stages and watch over them until the end, as `_serve` does."""
        self._poller = SimulatedPoller(CURRENT.process)  # type: ignore[assignment]
        self._poller.register(self._control.socket)  # type: ignore[arg-type]
        self._children = ChildSet(self._poller)  # type: ignore[arg-type]
        now_s = CURRENT.world.agenda.now_us / 1e6
        self.perform(self._roster.start(now_s))
        while not self._stopping:
            self._poll()
            self.perform(self._roster.check_timeouts(CURRENT.world.agenda.now_us / 1e6))
            self._kill_hung()
            self._stopping = self._orders.check() or self._stopping
        CURRENT.world.on_stopping(self.cause)
        self._stop_stages()
        CURRENT.world.on_engine_ended()

    def perform(self, actions: list[RosterAction]) -> None:
        for action in actions:
            if isinstance(action, Spawn):
                CURRENT.world.on_spawn(action.party)
            if isinstance(action, Kill):
                CURRENT.world.on_timeout(action.party)
            if isinstance(action, GiveUp):
                CURRENT.world.on_gave_up(action.cause)
        super().perform(actions)

    def _kill_hung(self) -> None:
        before = set(self._hung)
        super()._kill_hung()
        for stage in self._hung.keys() - before:
            CURRENT.world.on_hang(Hang(stage, self._hung[stage]))

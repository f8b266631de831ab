"""One history: all processes of an engine, its clients and its supervisor, and the checks over them."""

from __future__ import annotations

from typing import Any

from expertflow.errors import ExpertFlowError
from expertflow.ipc.messages.control import FROM_STAGE, TO_STAGE
from expertflow.ipc.stage.startup import StageSpec
from expertflow.ipc.stage.wiring import decoders_of
from expertflow.ipc.transport.addresses import Party
from expertflow.runtime.engine.stages import StagePlan
from expertflow.runtime.engine.watchdog import Hang
from expertflow.tests.simulation.agenda import Agenda, Broken, require
from expertflow.tests.simulation.clients import Client
from expertflow.tests.simulation.current import CURRENT
from expertflow.tests.simulation.memory import Memory
from expertflow.tests.simulation.plan import HANG_S, RESTART_LIMIT, STAGES, Plan
from expertflow.tests.simulation.processes import START_US, Process, StageProcess
from expertflow.tests.simulation.supervisor import SimulatedChild, SimulatedEngine
from expertflow.tests.simulation.wires import Channel, ClientRouter, ControlLink, Wire, name_of
from greenlet import getcurrent

DECODERS = {stage: decoders_of(stage) for stage in STAGES}
REAP_US = (50, 5000)
SETTLE_US = 25_000_000
"""Time after the last fault within which every request must end: less than the client's `ASK_AGAIN_NS`, which must not
be what saves it."""
MAX_EVENTS = 60_000
WINDOW_US = 60_000_000
"""Time within which deaths count (`RESTART_WINDOW_S`)."""


class World:
    """Everything that lives in one history."""

    def __init__(self, plan: Plan, agenda: Agenda) -> None:
        CURRENT.world = self  # type: ignore[assignment]
        self.plan, self.agenda, self.hub = plan, agenda, getcurrent()
        self.survey, self.config, self.decoders = plan.survey(), plan.config(), DECODERS
        self.memory = Memory(plan.slots)
        self.router: ClientRouter | None = None
        self.engine_ended = self.stopping = False
        self.frozen_us = 0
        self.frozen_until_us = -1
        self.cause: ExpertFlowError | None = None
        self.graveyard: list[Process] = []
        self.stages: dict[str, StageProcess] = {}
        """The newest start of each stage, dead or alive."""
        self.deaths: dict[str, int] = dict.fromkeys(STAGES, 0)
        self.hanging_us: dict[str, int] = {}
        """Stage → time until which it may be taken for one that hangs."""
        self._children: dict[str, SimulatedChild] = {}
        self._channels: dict[tuple[Party, Party], Channel] = {}
        plans = [StagePlan(stage, ()) for stage in STAGES]
        self.engine = SimulatedEngine(self.config, plans)
        self.supervisor = Process("supervisor", self.engine.serve)
        agenda.after("start supervisor", self.supervisor.start, 0, 100)
        self.clients = {name: Client(name) for name in "ab"}
        for request in plan.requests:
            self._plan_request(agenda, request)

    def _plan_request(self, agenda: Agenda, request: Any) -> None:
        client = self.clients[request.client]
        agenda.at(f"client {client.name} submits {request.name}", lambda: client.submit(request), request.at_us)
        if request.cancel_us:
            name = f"client {client.name} cancels {request.name}"
            agenda.at(name, lambda: client.cancel(request.name), request.cancel_us)

    # Processes

    def start_stage(self, party: Party) -> SimulatedChild:
        """Start a process; its `main` begins after the time of its imports."""
        up = Wire(f"{name_of(party)}→supervisor", FROM_STAGE.decode, lambda: None)
        router = self.engine._control
        up._arrive = lambda: self._to_supervisor(party, up)
        down = Wire(f"supervisor→{name_of(party)}", TO_STAGE.decode, lambda: self.wake(party))
        router.wires[party.identity] = down  # type: ignore[attr-defined]
        process = StageProcess(party, ControlLink(party, up, down))
        process.up, process.down = up, down  # type: ignore[attr-defined]
        self.stages[party.stage] = process
        child = self._children[process.name] = SimulatedChild(process)
        self.agenda.after(f"start {process.name}", lambda: process.run_or_defer(process.start), *START_US, False)
        return child

    def _to_supervisor(self, party: Party, wire: Wire) -> None:
        self.engine._control.socket.arrived.append((party.identity, wire.arrived.popleft()))  # type: ignore[attr-defined]
        self.supervisor.wake()

    def spec(self, party: Party) -> StageSpec:
        """Return what a stage is told at its start."""
        return StageSpec(
            stage=party.stage, epoch=party.epoch, run_dir="run", config=self.config, survey_path="",
            slots=self.plan.slots,
        )  # fmt: skip

    def live(self, stage: str) -> Any:
        """Return the process of a stage, None if it is dead."""
        process = self.stages.get(stage)
        return None if process is None or process.dead else process

    def epoch(self, stage: str) -> int:
        return self.stages[stage].party.epoch

    def wake(self, party: Party) -> None:
        """Let a stage run soon, if it waits for messages."""
        process = self.stages[party.stage]
        if process.party == party:
            process.wake()

    def wake_stage(self, stage: str) -> None:
        if stage in self.stages:
            self.stages[stage].wake()

    def channel(self, party: Party, peer: Party) -> Channel:
        """Return the channel between two starts of stages."""
        first, second = sorted((party, peer))
        if (first, second) not in self._channels:
            self._channels[first, second] = Channel((first, second))
        return self._channels[first, second]

    def kill(self, process: StageProcess, draw: int) -> Any:
        """Kill a process: of what it has sent some still arrives, of what it was sent nothing."""
        if process.dead:
            return "nothing: it is dead"
        self.deaths[process.party.stage] += 1
        process.kill()
        for number, (parties, channel) in enumerate(self._channels.items()):
            if process.party in parties:
                under_way = len(channel.wires[process.party].under_way)
                channel.close(process.party, keep=(draw >> number % 8) % (under_way + 1))
        if process.party.stage == "scheduler" and self.router is not None:
            self.close_router(self.router, draw)
        process.up.keep(draw % (len(process.up.under_way) + 1))  # type: ignore[attr-defined]
        self._end(process, -9)
        return None

    def fell(self, process: StageProcess) -> None:
        """Take note of a process that has ended with an error that a restart mends."""
        self.deaths[process.party.stage] += 1
        self.ended(process, exit_code=3)

    def cut(self, stages: tuple[str, str], draw: int) -> str:
        """Break the connection between two stages that live."""
        one, other = (self.live(stage) for stage in stages)
        if one is None or other is None:
            return "nothing: one of them is dead"
        return self.channel(one.party, other.party).cut(draw)

    def ended(self, process: Process, exit_code: int = 0) -> None:
        """Take note of a process that has ended by itself."""
        process.dead = True
        if not isinstance(process, StageProcess):
            return
        for parties, channel in self._channels.items():
            if process.party in parties:
                channel.close(process.party, keep=len(channel.wires[process.party].under_way))
        if process.party.stage == "scheduler" and self.router is not None:
            self.close_router(self.router, keep=None)
        self._end(process, exit_code)

    def _end(self, process: StageProcess, exit_code: int) -> None:
        if process.party.stage == "loader":
            self.memory.writing.clear()
        child = self._children[process.name]
        child.exit_code = exit_code
        process.down.close()  # type: ignore[attr-defined]
        self.engine._control.wires.pop(process.party.identity, None)  # type: ignore[attr-defined]
        self.agenda.after(f"end of {process.name} is seen", lambda: self._see_end(child), *REAP_US)

    def _see_end(self, child: SimulatedChild) -> None:
        child.pidfd.readable = True
        self.supervisor.wake()

    # The socket of clients

    def open_router(self, router: ClientRouter) -> None:
        self.router = router
        for client in self.clients.values():
            if not client.gone:
                client.socket.seek()

    def close_router(self, router: ClientRouter, keep: int | None) -> None:
        """Close the scheduler's socket; `keep` decides what of its answers arrives, None: all."""
        if self.router is not router:
            return
        self.router = None
        for client in self.clients.values():
            client.socket.lose_router(0 if keep is None else keep, keep is None)

    # What the supervisor decides

    def on_hang(self, hang: Hang) -> None:
        until = self.hanging_us.get(hang.stage, -1)
        require(until >= self.agenda.now_us, "R10", f"{hang.stage} was killed though it does not hang: {hang.what}")

    def on_timeout(self, party: Party) -> None:
        suspects = (self.hanging_us.get(name, -1) for name in (party.stage, "supervisor"))
        until = max(self.frozen_until_us, *suspects)
        require(until >= self.agenda.now_us, "R10", f"{name_of(party)} was killed though it starts in time")

    def on_spawn(self, party: Party) -> None:
        over = party.epoch - 1 > RESTART_LIMIT and self.agenda.now_us < WINDOW_US
        require(not over, "restarts", f"{name_of(party)} is started after {party.epoch - 1} deaths")

    def on_gave_up(self, cause: ExpertFlowError) -> None:
        began = all(self.stages[stage].party.epoch > 0 for stage in STAGES) and self.engine._roster.complete
        limit = any(deaths > RESTART_LIMIT for deaths in self.deaths.values())
        require(limit or not began, "restarts", f"the engine gave up too early: {cause}")

    def on_stopping(self, cause: ExpertFlowError | None) -> None:
        self.stopping, self.cause = True, cause

    def on_engine_ended(self) -> None:
        self.engine_ended = True
        alive = [process.name for process in self.stages.values() if not process.dead]
        require(not alive, "I6", f"the engine has ended and left {alive}")

    def check_error(self, name: str, error: ExpertFlowError) -> None:
        """Check that a request may end with this error."""
        died = "died" in error.what
        allowed = self.stopping or self.engine_ended or (died and self.deaths["compute"] >= 3)
        require(allowed, "I4", f"{name} ended with an error: {error}")

    # To the end

    def lose_advice(self, draw: int) -> str:
        """Lose what is on its way between the predictor and the others."""
        lost = 0
        for parties, channel in self._channels.items():
            if any(party.stage == "predictor" for party in parties):
                lost += sum(len(wire.keep(draw % (len(wire.under_way) + 1))) for wire in channel.wires.values())
        return f"{lost} messages"

    @property
    def whole(self) -> bool:
        """Return whether all stages are there, know each other, and have noticed every connection that broke."""
        ready = all(member.ready for member in self.engine._roster.members.values())
        alive = all(not process.dead and not process.stopped for process in self.stages.values())
        broken = any(channel.broken for parties, channel in self._channels.items() if all(map(self._lives, parties)))
        return ready and alive and not broken and not self.supervisor.stopped and not self.stopping

    def _lives(self, party: Party) -> bool:
        process = self.live(party.stage)
        return process is not None and process.party == party

    @property
    def idle(self) -> bool:
        """Return whether no stage has work, not even for a request that nobody waits for."""
        scheduler, compute, loader = (self.stages[stage].shell for stage in ("scheduler", "compute", "loader"))
        if scheduler is None or compute is None or loader is None:
            return False
        state = scheduler._state
        scheduled = state._stepper.units or state._frontend.ledger.open
        loading = loader._runtime.ledger._table.filling and not self.stages["loader"].reads_hang
        return not (scheduled or compute._steps or compute.busy or loading)

    def state_of_stages(self) -> str:
        return ", ".join(f"{p.name} {'dead' if p.dead else 'alive'}" for p in self.stages.values())

    @property
    def open_requests(self) -> list[str]:
        return [name for client in self.clients.values() for name in client.open]

    def bury(self) -> None:
        """Free what the dead leave; called outside of all processes."""
        while self.graveyard:
            self.graveyard.pop().bury()

    def close(self) -> None:
        """End all processes of the history, which nobody watches any more."""
        for process in (*self.stages.values(), self.supervisor):
            process.dead = True
            process.bury()
        self.bury()

    def describe(self) -> str:
        """Return the state of every process, for a history that gets stuck."""
        lines = [f"open requests: {self.open_requests}"]
        for stage, process in self.stages.items():
            state = "dead" if process.dead else "stopped" if process.stopped else "alive"
            lines.append(f"{process.name}: {state}")
            if stage == "scheduler" and process.shell is not None:
                lines.append(f"  {process.shell._state.statistics()}")
            if stage == "compute" and process.shell is not None:
                lines.append(f"  missing {sorted(process.shell.holdings.missing)}, holds {process.shell.held()}")
            if stage == "loader" and process.shell is not None:
                lines.append(f"  {process.shell._runtime.ledger.statistics()}")
        return "\n".join(lines)


__all__ = ["Broken", "HANG_S", "MAX_EVENTS", "SETTLE_US", "World"]

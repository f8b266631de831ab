"""Simulated processes: the real shell of each stage in a greenlet, which stands still wherever it would wait."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from expertflow.ipc.messages import Hint, PredictStep, StepPrediction, StepRouting
from expertflow.ipc.stage.events import Received
from expertflow.ipc.stage.span_quota import quota_of
from expertflow.ipc.stage.stage import Stage
from expertflow.ipc.transport.addresses import Party
from expertflow.ipc.transport.link import LinkCut
from expertflow.tests.simulation.agenda import Broken, Pending, require
from expertflow.tests.simulation.current import CURRENT
from expertflow.tests.simulation.executor import SimulatedCompute
from expertflow.tests.simulation.plan import Plan
from expertflow.tests.simulation.routes import routes_of
from expertflow.tests.simulation.wires import ControlLink, name_of
from expertflow.workers.loader.fills import SharedFills
from expertflow.workers.loader.shell import LoaderShell
from expertflow.workers.loader.transfer.transfers import Transfer
from expertflow.workers.predictor.base.forecaster import Forecaster, Part
from expertflow.workers.predictor.baselines import Noise, Previous
from expertflow.workers.predictor.shell import PredictorShell
from expertflow.workers.scheduler.shell import SchedulerShell
from greenlet import GreenletExit, greenlet

WAKE_US = (5, 60)
START_US = (20_000, 300_000)
FILL_US = (200, 4000)
KERNEL_US = (20, 600)


class Process:
    """One process: runs until it waits, and is woken by what arrives or by its timeout."""

    def __init__(self, name: str, main: Callable[[], None]) -> None:
        self.name, self._wake_name = name, f"wake {name}"
        self.dead = False
        self.stopped = False
        """By a signal, as SIGSTOP does: nothing in it runs, and it can be killed."""
        self._main = main
        self._greenlet = greenlet(self._run, CURRENT.world.hub)
        self._wake: Pending | None = None
        """When it runs again at the latest; None: it does not wait for messages."""
        self._deferred: list[Callable[[], Any]] = []

    def start(self) -> None:
        self.run_or_defer(self._switch)

    def rest(self, timeout_ms: float) -> None:
        """Wait, in the process itself, for `wake` or until the time is over."""
        agenda = CURRENT.world.agenda
        self._wake = agenda.at(self._wake_name, self._on_wake, agenda.now_us + int(timeout_ms * 1000))
        CURRENT.world.hub.switch()

    def wake(self) -> None:
        """Let it run soon if it waits for messages."""
        if self._wake is None or self.dead:
            return
        agenda = CURRENT.world.agenda
        soon_us = agenda.now_us + agenda.delay(*WAKE_US)
        if soon_us < self._wake.due_us:
            self._wake.cancelled = True
            self._wake = agenda.at(self._wake_name, self._on_wake, soon_us)

    def work(self, what: str, low_us: int, high_us: int) -> None:
        """Be busy, in the process itself, and deaf to messages."""
        CURRENT.world.agenda.after(f"{self.name} {what}", lambda: self.run_or_defer(self._switch), low_us, high_us)
        CURRENT.world.hub.switch()

    def run_or_defer(self, act: Callable[[], Any]) -> Any:
        """Do something inside the process: now, after it was stopped, or never if it is dead."""
        if self.dead:
            return "nothing: it is dead"
        if self.stopped:
            self._deferred.append(act)
            return "not while it is stopped"
        return act()

    def proceed(self) -> None:
        """Go on after a stop."""
        self.stopped = False
        deferred, self._deferred = self._deferred, []
        for act in deferred:
            self.run_or_defer(act)

    def kill(self) -> None:
        """End it wherever it is."""
        self.dead = True
        if self._wake is not None:
            self._wake.cancelled = True
        CURRENT.world.graveyard.append(self)  # type: ignore[arg-type]

    def bury(self) -> None:
        """Free the stack of a dead process; from outside of all processes only."""
        if self._greenlet and not self._greenlet.dead:
            self._greenlet.throw(GreenletExit)

    def _on_wake(self) -> Any:
        return self.run_or_defer(self._switch)

    def _switch(self) -> None:
        self._wake = None
        before = getattr(CURRENT, "process", None)
        CURRENT.process = self  # type: ignore[assignment]
        try:
            self._greenlet.switch()
        finally:
            if before is not None:
                CURRENT.process = before

    def _run(self) -> None:
        try:
            self._main()
        except (Broken, GreenletExit):
            raise
        except LinkCut:
            CURRENT.world.fell(self)  # type: ignore[arg-type]
            return
        except Exception as error:
            raise Broken(f"crash: {self.name} ended with {type(error).__name__}: {error}") from error
        if not self.dead:
            CURRENT.world.ended(self)  # type: ignore[arg-type]


class SimulatedPoller:
    """Stands for `zmq.Poller` in one process."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._sources: dict[Any, None] = {}

    def register(self, source: Any, flags: int = 1) -> None:
        self._sources[source] = None

    def unregister(self, source: Any) -> None:
        self._sources.pop(source, None)

    def poll(self, timeout_ms: int) -> list[tuple[Any, int]]:
        ready = [(source, 1) for source in self._sources if source.readable]
        if ready or not timeout_ms:
            return ready
        self._process.rest(timeout_ms)
        return [(source, 1) for source in self._sources if source.readable]


class SimulatedStage(Stage):
    """The real `Stage` over simulated sockets."""

    def __init__(self, process: StageProcess, control: ControlLink) -> None:  # the real one opens sockets
        self.spec = CURRENT.world.spec(process.party)
        self.config = self.spec.config
        self.context = None  # type: ignore[assignment]
        self.running = True
        self.watched = False
        self._party = process.party
        self._poller = SimulatedPoller(process)  # type: ignore[assignment]
        self._control = control  # type: ignore[assignment]
        self._woken_fd, self.wake_fd = -1, -1
        self._poller.register(control.socket)  # type: ignore[arg-type]
        self._decoders = CURRENT.world.decoders[process.party.stage]
        self._links, self._peers, self._watched, self._arenas = {}, {}, {}, {}
        self._stop_requests, self._deferred = [], []
        self._started_ns = CURRENT.world.agenda.now_us * 1000
        self._waited_ns = self._sent = self._published_ns = self._rejected = 0
        self._spans = []
        self._quota = quota_of(process.party.stage)

    def survey(self, cls: Any) -> Any:
        return CURRENT.world.survey

    def arena(self, name: str) -> Any:
        return NoMemory


class NoMemory:
    """Stands for shared memory, whose contents `Memory` knows."""

    array = None


class StageProcess(Process):
    """One start of a stage."""

    def __init__(self, party: Party, control: ControlLink) -> None:
        super().__init__(name_of(party), self._serve)
        self.party, self._control = party, control
        self.shell: Any = None
        self.reads_hang = False

    def _serve(self) -> None:
        self.stage = SimulatedStage(self, self._control)
        self.shell = SHELLS[self.party.stage](self.stage)
        self.shell.run()


class SimulatedLoader(LoaderShell):
    """The real shell; its reader threads are events."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage)
        self.refused_advice = 0
        """Predictions and hints that came too early to be of use: the ledger counts them as invalid."""

    def _on_event(self, event: object) -> None:
        counts = self._runtime.ledger._counts
        before = counts["invalid"]
        super()._on_event(event)
        if isinstance(event, Received) and isinstance(event.message, StepPrediction | Hint):
            self.refused_advice += counts["invalid"] - before

    def _wake(self) -> None:
        CURRENT.world.wake(self._stage._party)


SHELLS: dict[str, Callable[[Stage], Any]] = {
    "compute": SimulatedCompute,
    "loader": SimulatedLoader,
    "predictor": PredictorShell,
    "scheduler": SchedulerShell,
}


class SimulatedTransfers:
    """Stands for `TransferEngine`: every transfer ends after a time of its own."""

    def __init__(self, process: StageProcess, done: Callable[[Transfer], None]) -> None:
        self._process, self._done = process, done

    def start(self, slot: int, layer: int, expert: int, urgent: bool, cause: Any) -> None:
        world = CURRENT.world
        world.memory.begin_write(slot, (layer, expert))
        transfer = Transfer(slot, layer, expert, 0, cause, world.agenda.now_us * 1000)
        name = f"{self._process.name} fills slot {slot}"
        low_us, high_us = (world.plan.read_factor * bound_us for bound_us in FILL_US)

        def end() -> Any:
            return self._process.run_or_defer(lambda: self._end(transfer))

        world.agenda.after(name, end, low_us, high_us, may_be_late=world.plan.read_factor == 1)

    def promote(self, slot: int) -> None: ...

    def close(self) -> None: ...

    def _end(self, transfer: Transfer) -> Any:
        if self._process.reads_hang:
            return "nothing: its reads hang"
        CURRENT.world.memory.end_write(transfer.slot, (transfer.layer, transfer.expert))
        transfer.started_ns = transfer.ended_ns = CURRENT.world.agenda.now_us * 1000
        self._done(transfer)
        return f"with {transfer.layer}/{transfer.expert}"


def open_fills(survey: Any, slots: Any, open_engine: Any, send: Any, open_files: Any) -> SharedFills:
    """Return the real fills of shared memory over simulated transfers."""
    process, runtime = CURRENT.process, open_engine.__self__
    assert isinstance(process, StageProcess)
    return SharedFills(SimulatedTransfers(process, runtime._on_transfer_done))  # type: ignore[arg-type]


class Truth(Forecaster):
    """Knows the routes."""

    def parts(self, request: PredictStep) -> Iterator[Part]:
        plan = CURRENT.world.plan
        routes = routes_of(plan, request.token_ids)
        chances = np.zeros((len(request.token_ids), plan.layers, plan.experts), np.float32)
        np.put_along_axis(chances, routes.astype(np.int64), 1.0, axis=2)
        yield np.arange(len(request.token_ids)), chances

    def learn(self, routing: StepRouting) -> None: ...


class CheckedPrevious(Previous):
    """The real predictor that follows rows; it objects to a request that comes too early or too late."""

    def __init__(self, layers: int, experts: int, top_k: int) -> None:
        super().__init__(layers, experts, top_k)
        self._asked: dict[int, int] = {}
        """Row → newest step that was predicted for it."""
        self._newest = -1

    def forecast(self, request: PredictStep) -> np.ndarray:
        step = request.step
        require(step > self._newest, "predictor", f"step {step} is predicted after step {self._newest} has run")
        for row in request.rows:
            before = self._asked.get(row, -1)
            known = before == step or before <= self._newest
            require(known, "predictor", f"row {row} is predicted before the routing of its step {before} is known")
            self._asked[row] = step
        return super().forecast(request)

    def learn(self, routing: StepRouting) -> None:
        super().learn(routing)
        self._newest = max(self._newest, routing.step)


def make_forecaster(config: Any, shape: Any) -> Forecaster | None:
    """Return the predictor of the plan."""
    plan: Plan = CURRENT.world.plan
    if plan.forecaster == "none":
        return None
    if plan.forecaster == "noise":
        return Noise(plan.layers, plan.experts, seed=plan.seed)
    if plan.forecaster == "previous":
        return CheckedPrevious(plan.layers, plan.experts, plan.top_k)
    return Truth(plan.layers, plan.experts)

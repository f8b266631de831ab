"""Compute without a model: the real shell and residency; tokens and routes are functions of the row alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import numpy as np
from expertflow.ipc.messages import Hint, KeepPrefix, RunStep, Split, Stepped, StepRouting
from expertflow.ipc.messages.to_compute import DropPrefix, DropUnit
from expertflow.tests.scheduler.fake_compute import FakeCompute
from expertflow.tests.simulation.agenda import require
from expertflow.tests.simulation.current import CURRENT
from expertflow.tests.simulation.routes import routes_of
from expertflow.workers.compute.assembly import Compute
from expertflow.workers.compute.experts.holdings import Holdings
from expertflow.workers.compute.experts.residency import Residency
from expertflow.workers.compute.shell import ComputeShell
from expertflow.workers.scheduler.limits import ComputeInfo

KERNEL_US = (20, 600)
Read = tuple[int, tuple[int, int], int]
"""Slot, key and the number of writes at its begin."""


class SlotReads:
    """Stands for `SlotViews`: the view of an expert is the slot and what is to be found in it."""

    def __init__(self, layers: int, experts: int, fully_resident: bool) -> None:
        self.experts, self._stackable = experts, fully_resident

    def weights(self, slot: int, layer: int, expert: int) -> Read:
        return slot, (layer, expert), CURRENT.world.memory.check_read(slot, (layer, expert))

    def stack(self, layer: int) -> Any:
        return layer if self._stackable else None


class SimulatedExecutor:
    """Runs steps as the real one: layer by layer, waiting for experts in between."""

    kv_bytes = prefill_tokens = 0

    def __init__(self, shell: SimulatedCompute, residency: Residency) -> None:
        plan = CURRENT.world.plan
        facts = ComputeInfo(
            kv_bytes_per_position=10, padding=plan.padding, moving=plan.moving, extending=plan.extending,
            copying=plan.copying,
        )  # fmt: skip
        self.held = FakeCompute(facts, 7000, stall_ns=plan.stall_ns)
        self.tokens_done = 0
        self.running = False
        self._shell, self._residency, self._plan = shell, residency, plan

    def run(self, step: RunStep) -> tuple[Stepped, StepRouting]:
        self._shell.require_present(step.number)
        self.held.receive(step)
        stepped = self.held.run_next()
        assert stepped is not None
        ran = self.held.ran.pop()
        self._shell.require_wanted(ran.rows)
        routes = routes_of(self._plan, ran.token_ids)
        self.running = True
        self._residency.begin_step(step.number)
        for layer in range(self._plan.layers):
            self._run_layer(step.number, layer, routes)
        self.running = False
        self.tokens_done += len(stepped.tokens)
        many = list(range(len(ran.token_ids)))
        routing = StepRouting(
            step=step.number, token_ids=ran.token_ids, rows=ran.rows, positions=ran.positions or many,
            top_k=self._plan.top_k, experts=routes.tobytes(), hits=0, misses=0, stall_ns=0,
        )  # fmt: skip
        return stepped, routing

    def forget(self, order: DropUnit) -> None:
        self._obey(order)

    def split(self, order: Split) -> None:
        self._obey(order)

    def change_prefixes(self, order: KeepPrefix | DropPrefix) -> None:
        self._obey(order)

    def forget_all(self) -> None:
        self.held.units.clear()
        self.held.blocks.clear()

    def _obey(self, order: Any) -> None:
        self.held.receive(order)
        require(self.held.run_next() is None, "units", "an order was answered like a step")

    def _run_layer(self, step: int, layer: int, routes: np.ndarray) -> None:
        residency = self._residency
        residency.begin(layer, sorted({int(expert) for expert in routes[:, layer].flat}))
        self._hint(step, layer + 1, routes)
        if residency.stack() is not None:
            self._read([(slot, (layer, expert)) for expert, slot in residency._runs])
            residency.finish()
            return
        for group in residency.stream(range(self._plan.together)):
            self._read([(slot, key) for _, (slot, key, _) in self._reads_of(group)])

    def _reads_of(self, group: Any) -> Iterator[tuple[int, Read]]:
        yield from group

    def _read(self, reads: list[tuple[int, tuple[int, int]]]) -> None:
        """Read slots for the time of a kernel: they must be whole at its begin and unchanged at its end."""
        memory = CURRENT.world.memory
        begun = [(slot, key, memory.check_read(slot, key)) for slot, key in reads]
        self._shell.reads = {slot for slot, _ in reads}
        CURRENT.process.work("ends a kernel", *KERNEL_US)
        for slot, key, writes in begun:
            memory.check_read(slot, key, writes)
        self._shell.reads = set()

    def _hint(self, step: int, layer: int, routes: np.ndarray) -> None:
        if self._plan.hints == "none" or layer >= self._plan.layers:
            return
        scores = np.zeros(self._plan.experts, np.uint8)
        if self._plan.hints == "truth":
            scores[routes[:, layer].reshape(-1)] = 255
        else:
            scores[step % self._plan.experts] = 255
        self._shell.stage.send("loader", Hint(step, layer, scores.tobytes()))


class SimulatedCompute(ComputeShell):
    """The real shell with another executor."""

    def __init__(self, stage: Any) -> None:
        self.stage = stage
        self.reads: set[int] = set()
        """Slots that a kernel reads now."""
        self.executor: SimulatedExecutor
        super().__init__(stage)

    @property
    def busy(self) -> bool:
        """Return whether a step runs."""
        return self.executor.running

    def held(self) -> dict[int, tuple[int, int]]:
        """Return slot → key of what compute believes to hold."""
        return self.holdings.table()

    def require_present(self, number: int) -> None:
        """Check that a step is of the scheduler that is there, as far as compute knows."""
        epoch = self._scheduler_epoch
        sender = number >> 32
        require(sender == epoch, "epochs", f"step {number} of scheduler.{sender} runs under scheduler.{epoch}")

    def require_wanted(self, rows: list[int]) -> None:
        """Check that the scheduler knows every row that runs, if only as one that leaves."""
        scheduler = CURRENT.world.live("scheduler")
        if scheduler is None or scheduler.shell is None or scheduler.party.epoch != self._scheduler_epoch:
            return
        units = scheduler.shell._state._stepper.units.values()
        known = {request.number for unit in units for request in unit.all_rows()}
        require(known.issuperset(rows), "units", f"compute runs rows that have ended: {set(rows) - known}")

    def _load(self, survey: Any) -> Any:
        return None

    def _assemble(self, model: Any, survey: Any, attachments: Any) -> Compute:
        stage, slots = self.stage, self.stage.spec.slots
        self.holdings = Holdings(slots, survey.layers, survey.experts)
        reads = cast(Any, SlotReads(survey.layers, survey.experts, survey.fully_resident(slots)))
        residency = Residency(
            self.holdings, reads, lambda message: stage.send("loader", message), self._receive, self._wait,
            lambda: CURRENT.world.agenda.now_us * 1000,
        )  # type: ignore[arg-type]  # fmt: skip
        self.executor = SimulatedExecutor(self, residency)
        return Compute(residency, self.executor)  # type: ignore[arg-type]

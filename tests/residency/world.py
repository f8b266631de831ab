"""A model of everything around the two cores: links, transfers, kernels, slots' contents, deaths. It checks as it goes.

Nothing happens by itself: `enabled()` lists what could happen next, `perform` lets it happen.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from expertflow.ipc.messages import Hint, StepPrediction, StepRouting
from expertflow.workers.compute.experts.holdings import (
    Computed,
    Holdings,
    LayerEnded,
    LayerEntered,
    LayerRoutesKnown,
    LayerStarted,
    LoaderJoined,
    Run,
)
from expertflow.workers.loader.events import ComputeJoined, FillDone, PromoteFill, StartFill
from expertflow.workers.loader.ledger import Ledger

TORN = (-1, -1)
"""Contents of a slot that is, or was when its writer died, half written."""


class Broken(Exception):
    """The protocol was broken."""


def require(condition: bool, what: str) -> None:
    if not condition:
        raise Broken(what)


@dataclass
class Shape:
    slots: int
    layers: int
    experts: int
    top_k: int
    fills_in_flight: int = 2
    by_layer: bool = False
    rank_victims: str = "auto"
    volatile: bool = False
    """Slots are in memory of compute's own, and gone with it."""
    spare_slots: int = 0


@dataclass
class World:
    """`program[step][layer]` are the experts that the step uses; steps of several units simply follow each other."""

    shape: Shape
    program: list[list[list[int]]]
    make_ledger: Callable[[Shape], Ledger]
    make_holdings: Callable[[Shape], Holdings]
    contents: list[tuple[int, int]] = field(init=False)
    fills: dict[int, tuple[int, int]] = field(init=False, default_factory=dict)
    kernels: list[tuple[int, int]] = field(init=False, default_factory=list)
    """(expert, slot) that compute is reading; they end in any order."""
    to_loader: deque[Any] = field(init=False, default_factory=deque)
    to_compute: deque[Any] = field(init=False, default_factory=deque)
    loader_knows: bool = field(init=False, default=False)
    """The loader has heard of the compute that runs now; until then what it sends goes to the dead one."""
    compute_knows: bool = field(init=False, default=False)
    done_steps: int = field(init=False, default=0)
    number: int = field(init=False, default=0)
    """Of the step that runs; a step that is run again gets a new one."""
    layer: int | None = field(init=False, default=None)
    """The layer that is open; None between layers."""
    next_layer: int = field(init=False, default=0)
    entered: bool = field(init=False, default=False)
    """The layer that is open was whole when it began, and all its experts run."""
    computed: set[int] = field(init=False, default_factory=set)
    performed: list[str] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self.contents = [TORN] * self.shape.slots
        self.ledger = self.make_ledger(self.shape)
        self.holdings = self.make_holdings(self.shape)

    # What can happen

    @property
    def finished(self) -> bool:
        return self.done_steps == len(self.program)

    def enabled(self) -> list[str]:
        """All that can happen now of itself: deaths and advice come on top."""
        possible = {
            "loader hears of compute": not self.loader_knows,
            "compute hears of loader": not self.compute_knows,
            "loader receives": self.loader_knows and bool(self.to_loader),
            "compute receives": self.compute_knows and bool(self.to_compute),
            "fill ends": bool(self.fills),
            "kernel ends": bool(self.kernels),
            "layer ends": self.layer is not None and self.holdings.layer_done and not self.kernels,
            "layer starts": self.layer is None and not self.finished,
        }
        return [name for name, can in possible.items() if can]

    def perform(self, action: str, which: int = 0) -> None:
        """Lets one thing happen; `which` chooses among transfers or kernels."""
        self.performed.append(action)
        getattr(self, "_" + action.replace(" ", "_"))(which)

    def _loader_hears_of_compute(self, which: int) -> None:
        self.loader_knows = True
        self.tell_ledger(ComputeJoined())

    def _compute_hears_of_loader(self, which: int) -> None:
        self.compute_knows = True
        self._tell_holdings(LoaderJoined())

    def _loader_receives(self, which: int) -> None:
        self.tell_ledger(self.to_loader.popleft())

    def _compute_receives(self, which: int) -> None:
        self._tell_holdings(self.to_compute.popleft())

    def _fill_ends(self, which: int) -> None:
        slot = list(self.fills)[which % len(self.fills)]
        self.contents[slot] = self.fills.pop(slot)
        self.tell_ledger(FillDone(slot))

    def _fill_fails(self, which: int) -> None:
        if self.fills:
            slot = list(self.fills)[which % len(self.fills)]
            del self.fills[slot]
            self.tell_ledger(FillDone(slot, ok=False))

    def _kernel_ends(self, which: int) -> None:
        expert, slot = self.kernels.pop(which % len(self.kernels))
        require(self.contents[slot] == (self.layer, expert), f"slot {slot} was changed under a kernel")
        self.computed.add(expert)
        self._tell_holdings(Computed([expert]))

    def _layer_starts(self, which: int) -> None:
        self.layer = self.next_layer
        self.computed = set()
        self.entered = which % 2 == 1 and self.holdings.is_resident(self.layer)
        if self.entered:
            self._tell_holdings(LayerEntered(self.number, self.layer))
        else:
            self._tell_holdings(LayerStarted(self.number, self.layer, self._experts_now()))

    def _layer_ends(self, which: int) -> None:
        wanted = set(range(self.shape.experts)) if self.entered else set(self._experts_now())
        require(self.computed == wanted, "a layer ended without all of its experts")
        if self.entered:
            self._tell_holdings(LayerRoutesKnown(self.next_layer, self._experts_now()))
        self.layer, self.next_layer = None, self.next_layer + 1
        self._tell_holdings(LayerEnded())
        if self.next_layer == self.shape.layers:
            self._end_step()

    def _experts_now(self) -> list[int]:
        return self.program[self.done_steps][self.next_layer]

    def _end_step(self) -> None:
        self._to_loader(self._used())
        self.done_steps, self.number, self.next_layer = self.done_steps + 1, self.number + 1, 0

    def _used(self) -> StepRouting:
        """The routing as one token a top-k group: every expert of the layer occurs, the last one fills up."""
        top_k, program = self.shape.top_k, self.program[self.done_steps]
        tokens = max(-(-len(experts) // top_k) for experts in program)
        padded = [(experts + experts[-1:] * (tokens * top_k))[: tokens * top_k] for experts in program]
        routing = np.array(padded, np.uint16).reshape(self.shape.layers, tokens, top_k).swapaxes(0, 1)
        many = list(range(tokens))
        return StepRouting(
            step=self.number,
            token_ids=many,
            rows=many,
            positions=many,
            top_k=top_k,
            experts=routing.tobytes(),
            hits=0,
            misses=0,
            stall_ns=0,
        )

    # Deaths and advice

    def kill_loader(self) -> None:
        """Transfers end where they are; links and all that is under way on them are lost."""
        self.performed.append("kill loader")
        self.fills.clear()
        self.ledger = self.make_ledger(self.shape)
        self._cut_links()

    def kill_compute(self) -> None:
        """The step is run again from its first layer, under a new number."""
        self.performed.append("kill compute")
        self.holdings = self.make_holdings(self.shape)
        if self.shape.volatile:
            self.contents = [TORN] * self.shape.slots
        self.kernels.clear()
        self.layer, self.next_layer, self.number = None, 0, self.number + 1
        self._cut_links()

    def _cut_links(self) -> None:
        self.loader_knows = self.compute_knows = False
        self.to_loader.clear()
        self.to_compute.clear()

    def advise(self, advice: StepPrediction | Hint) -> None:
        self.performed.append("advice")
        self.tell_ledger(advice)

    # What the cores want done

    def tell_ledger(self, event: Any) -> None:
        for action in self.ledger.handle(event):
            match action:
                case StartFill():
                    self._start_fill(action)
                case PromoteFill():
                    require(action.slot in self.fills, "promoted a transfer that does not run")
                case _ if self.loader_knows:
                    self.to_compute.append(action)

    def _start_fill(self, fill: StartFill) -> None:
        key = (fill.layer, fill.expert)
        require(fill.slot not in self.fills, f"two transfers into slot {fill.slot}")
        require(key not in self.fills.values(), f"{key} is filled twice at a time")
        require(fill.slot not in self.held(), f"slot {fill.slot} is written while compute holds it")
        require(all(fill.slot != slot for _, slot in self.kernels), f"slot {fill.slot} is written under a kernel")
        require(key not in self.held().values(), f"{key} is filled although compute holds it")
        self.contents[fill.slot] = TORN
        self.fills[fill.slot] = key
        # As many urgent transfers again as others: a need starts at once.
        require(len(self.fills) <= 2 * self.shape.fills_in_flight, "more transfers in flight than allowed")

    def _tell_holdings(self, event: Any) -> None:
        for action in self.holdings.handle(event):
            match action:
                case Run():
                    for expert, slot in action.experts:
                        self._run(expert, slot)
                case _:
                    self._to_loader(action)

    def _to_loader(self, message: Any) -> None:
        if self.compute_knows:
            self.to_loader.append(message)

    def _run(self, expert: int, slot: int) -> None:
        require(self.layer is not None and slot not in self.fills, f"expert {expert} runs from a slot being filled")
        require(self.contents[slot] == (self.layer, expert), f"expert {expert} runs from {self.contents[slot]}")
        self.kernels.append((expert, slot))

    # How it stands

    def held(self) -> dict[int, tuple[int, int]]:
        """Slot -> key of what compute itself believes to hold."""
        return self.holdings.table()

    def settle(self) -> None:
        """Nothing dies any more: everything that can happen happens, in turn, until all work is done (liveness)."""
        work = sum(len(experts) for step in self.program for experts in step) + len(self.program) + 1
        most = 200 * work * (self.shape.slots + 1) + len(self.to_loader) + len(self.to_compute)
        last_turn: dict[str, int] = {}
        for turn in range(most):
            actions = self.enabled()
            if not actions:
                break
            action = min(actions, key=lambda name: last_turn.get(name, -1))
            last_turn[action] = turn
            self.perform(action, turn)
        require(self.finished, f"stuck: {self.enabled()}, missing {sorted(self.holdings.missing)}")
        require(not self.enabled(), f"never quiet: {self.enabled()}")
        self.check_ownership()

    def check_ownership(self) -> None:
        """When all is quiet both cores agree on every slot, and each holds what it is said to hold."""
        facts, held = self.ledger.statistics(), self.held()
        require(facts.filling == 0, "a transfer was forgotten")
        require(facts.free + facts.held == self.shape.slots, "a slot got lost")
        require(facts.held == len(held), f"the ledger thinks compute holds {facts.held} slots, it holds {len(held)}")
        for slot, key in held.items():
            require(self.contents[slot] == key, f"slot {slot} is said to hold {key}, but holds {self.contents[slot]}")

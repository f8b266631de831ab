"""Compute's side of the residency protocol: which experts are held in which slots, what runs, what is given back.

A pure core: `handle(event)` returns what to do, in order. A layer in which everything is held costs no message (R2).
"""

from __future__ import annotations

from typing import assert_never

import msgspec

from ....ipc.messages import Filled, Miss, Recall, Released, ResidentTable


class LayerStarted(msgspec.Struct, frozen=True, gc=False):
    """The router of `layer` in `step` has chosen these distinct experts."""

    step: int
    layer: int
    experts: list[int]


class LayerEntered(msgspec.Struct, frozen=True, gc=False):
    """`layer` begins and nobody here knows its routes: if all its experts are held they run, all of them."""

    step: int
    layer: int


class LayerRoutesKnown(msgspec.Struct, frozen=True, gc=False):
    """What a layer that was entered has really chosen, told when it is known."""

    layer: int
    experts: list[int]


class Computed(msgspec.Struct, frozen=True, gc=False):
    """These experts of the layer are done; nothing reads their slots any more."""

    experts: list[int]


class LayerEnded(msgspec.Struct, frozen=True, gc=False):
    """The layer is over, complete or abandoned; nothing reads any slot."""


class LoaderJoined(msgspec.Struct, frozen=True, gc=False):
    """A loader of a new epoch is there; it knows nothing, and what the one before it asked for is void (R9)."""


class Run(msgspec.Struct, frozen=True, gc=False):
    """(expert, slot) of experts of the current layer that can be computed; their slots are pinned until `Computed`."""

    experts: list[tuple[int, int]]


HoldingsEvent = LayerStarted | LayerEntered | LayerRoutesKnown | Computed | LayerEnded | LoaderJoined | Filled | Recall
HoldingsAction = Run | Miss | Released | ResidentTable

NO_SLOT = -1
NOW = (-1, -1)
"""A place in the order (step, layer) before all others."""


class HoldingsStatistics(msgspec.Struct, frozen=True):
    """Counters: experts held (`hits`) or not (`misses`) when their layer started, and messages that made no sense."""

    hits: int
    misses: int
    invalid: int


class Holdings:
    """What compute holds. Every needed expert that is held runs at once, so whatever else is held can be given back.

    Hence a recalled slot is delayed only while a kernel reads it, and any number of slots ≥ 1 makes progress (R3, R4).
    """

    def __init__(self, slots: int, layers: int, experts: int) -> None:
        self._slots, self._layers, self._experts = slots, layers, experts
        self._slot_of = [[NO_SLOT] * experts for _ in range(layers)]
        self._key_of: dict[int, tuple[int, int]] = {}
        self._running: dict[int, int] = {}
        """Expert of the current layer → the slot it is computed from (pinned)."""
        self._missing: set[int] = set()
        self._due: dict[int, tuple[int, int]] = {}
        """Recalled slot → (step, layer) from which on it is returned."""
        self._here = NOW
        self._found: list[int] = []
        """Keys that were held when their layers of this step began, since the last `Miss`."""
        self.hits = self.misses = self._invalid = 0

    def handle(self, event: HoldingsEvent) -> list[HoldingsAction]:
        """Takes one event in; what to do about it comes back, in the order in which it has to be done."""
        match event:
            case LayerStarted():
                return self._on_layer_started(event)
            case LayerEntered():
                return self._on_layer_entered(event)
            case LayerRoutesKnown():
                return self._on_layer_routes_known(event)
            case Computed():
                return self._on_computed(event)
            case LayerEnded():
                return self._on_layer_ended()
            case Filled():
                return self._on_filled(event)
            case Recall():
                return self._on_recall(event)
            case LoaderJoined():
                return self._on_loader_joined()
            case _:
                assert_never(event)

    @property
    def layer_done(self) -> bool:
        """Nothing of the current layer is missing or running."""
        return not self._missing and not self._running

    @property
    def missing(self) -> frozenset[int]:
        """Experts of the current layer that compute waits for."""
        return frozenset(self._missing)

    def is_whole(self, layer: int) -> bool:
        """Whether all experts of a layer are held."""
        return NO_SLOT not in self._slot_of[layer]

    def table(self) -> dict[int, tuple[int, int]]:
        """Slot → (layer, expert) of all that is held."""
        return dict(self._key_of)

    def statistics(self) -> HoldingsStatistics:
        return HoldingsStatistics(self.hits, self.misses, self._invalid)

    def _on_layer_started(self, started: LayerStarted) -> list[HoldingsAction]:
        """The need goes out before anything is computed, so that transfers and kernels overlap."""
        row = self._slot_of[started.layer]
        here = [(expert, row[expert]) for expert in started.experts if row[expert] != NO_SLOT]
        missing = [expert for expert in started.experts if row[expert] == NO_SLOT]
        self._move(started.step, started.layer)
        self._running, self._missing = dict(here), set(missing)
        self.hits += len(here)
        self.misses += len(missing)
        self._found += [started.layer * self._experts + expert for expert, _ in here]
        actions: list[HoldingsAction] = [self._need(started, missing)] if missing else []
        actions += self._give_back()
        if here:
            actions.append(Run(here))
        return actions

    def _on_layer_entered(self, entered: LayerEntered) -> list[HoldingsAction]:
        if not self.is_whole(entered.layer):
            return []
        self._move(entered.step, entered.layer)
        here = list(enumerate(self._slot_of[entered.layer]))
        self._running, self._missing = dict(here), set()
        return [*self._give_back(), Run(here)]

    def _on_layer_routes_known(self, counted: LayerRoutesKnown) -> list[HoldingsAction]:
        self.hits += len(counted.experts)
        self._found += [counted.layer * self._experts + expert for expert in counted.experts]
        return []

    def _move(self, step: int, layer: int) -> None:
        if step != self._here[0]:
            self._found.clear()
        self._here = (step, layer)

    def _need(self, started: LayerStarted, missing: list[int]) -> Miss:
        found, self._found = self._found, []
        return Miss(started.step, started.layer, missing, found)

    def _on_computed(self, computed: Computed) -> list[HoldingsAction]:
        for expert in computed.experts:
            self._running.pop(expert, None)
        return self._give_back()

    def _on_layer_ended(self) -> list[HoldingsAction]:
        self._running.clear()
        self._missing.clear()
        return self._give_back()

    def _on_filled(self, filled: Filled) -> list[HoldingsAction]:
        slot, key = filled.slot, (filled.layer, filled.expert)
        if not self._is_sensible(filled) or self._is_held_elsewhere(slot, key):
            return self._refuse(slot)
        if self._key_of.get(slot) == key:
            return []
        if slot in self._key_of:  # the loader wrote into our slot: what was in it is lost
            self._invalid += 1
            self._forget(slot)
        self._key_of[slot] = key
        self._slot_of[filled.layer][filled.expert] = slot
        return self._run_if_missing(slot, *key)

    def _is_sensible(self, filled: Filled) -> bool:
        in_layers, in_experts = 0 <= filled.layer < self._layers, 0 <= filled.expert < self._experts
        return in_layers and in_experts and 0 <= filled.slot < self._slots

    def _is_held_elsewhere(self, slot: int, key: tuple[int, int]) -> bool:
        layer, expert = key
        return self._slot_of[layer][expert] not in (NO_SLOT, slot)

    def _refuse(self, slot: int) -> list[HoldingsAction]:
        """A slot of no use goes back, else nobody would own it; one that was held has lost what was in it."""
        self._invalid += 1
        if slot in self._key_of:
            self._due[slot] = NOW
            return self._give_back()
        return [Released([slot], *self._here)] if 0 <= slot < self._slots else []

    def _run_if_missing(self, slot: int, layer: int, expert: int) -> list[HoldingsAction]:
        if layer != self._here[1] or expert not in self._missing:
            return []
        self._missing.discard(expert)
        self._running[expert] = slot
        return [Run([(expert, slot)])]

    def _on_recall(self, recall: Recall) -> list[HoldingsAction]:
        """A slot that is not held has just been given back: the two messages crossed."""
        due = (recall.step, recall.layer) if recall.step >= 0 else NOW
        for slot in recall.slots:
            if slot in self._key_of:
                self._due[slot] = min(due, self._due.get(slot, due))
        return self._give_back()

    def _on_loader_joined(self) -> list[HoldingsAction]:
        self._due.clear()
        need = Miss(*self._here, sorted(self._missing)) if self._missing else None
        return [ResidentTable(self.table(), need)]

    def _give_back(self) -> list[HoldingsAction]:
        """All slots whose recall is due and that no kernel reads."""
        if not self._due:
            return []
        pinned = set(self._running.values())
        slots = [slot for slot, due in self._due.items() if due <= self._here and slot not in pinned]
        for slot in slots:
            self._forget(slot)
        return [Released(slots, *self._here)] if slots else []

    def _forget(self, slot: int) -> None:
        layer, expert = self._key_of.pop(slot)
        self._slot_of[layer][expert] = NO_SLOT
        self._due.pop(slot, None)

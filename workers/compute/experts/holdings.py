"""Compute's side of the residency protocol: which slots hold which experts, what runs, which slots are released.

A pure core: `handle(event)` returns actions, in order. A layer whose experts are all held costs no message (R2).
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
    """`layer` begins and its routes are not known yet: if all its experts are held, all of them run."""

    step: int
    layer: int


class LayerRoutesKnown(msgspec.Struct, frozen=True, gc=False):
    """The experts that an entered layer chose, sent once its routes are read back."""

    layer: int
    experts: list[int]


class Computed(msgspec.Struct, frozen=True, gc=False):
    """These experts of the layer are done; nothing reads their slots any more."""

    experts: list[int]


class LayerEnded(msgspec.Struct, frozen=True, gc=False):
    """The layer ended, complete or abandoned; nothing reads any slot."""


class LoaderJoined(msgspec.Struct, frozen=True, gc=False):
    """A loader of a new epoch joined; it knows nothing, and requests of its predecessor are void (R9)."""


class Run(msgspec.Struct, frozen=True, gc=False):
    """(expert, slot) of experts of the current layer that can be computed; their slots stay pinned until `Computed`."""

    experts: list[tuple[int, int]]


HoldingsEvent = LayerStarted | LayerEntered | LayerRoutesKnown | Computed | LayerEnded | LoaderJoined | Filled | Recall
HoldingsAction = Run | Miss | Released | ResidentTable

NO_SLOT = -1
BEFORE_ALL = (-1, -1)
"""Before every (step, layer): a recall due at once."""


class HoldingsStatistics(msgspec.Struct, frozen=True):
    """Experts held (`hits`) or not (`misses`) when their layer began, and the number of invalid messages."""

    hits: int
    misses: int
    invalid: int


class Holdings:
    """Table of the experts that compute holds, by slot.

    Every needed expert that is held runs at once, so all other slots can be released. A recalled slot waits only for
    the kernel that reads it, and any number of slots ≥ 1 makes progress (R3, R4).
    """

    def __init__(self, slots: int, layers: int, experts: int) -> None:
        self._slots, self._layers, self._experts = slots, layers, experts
        self._slot_of = [[NO_SLOT] * experts for _ in range(layers)]
        self._key_of: dict[int, tuple[int, int]] = {}
        self._running: dict[int, int] = {}
        """Expert of the current layer → the slot it is computed from (pinned)."""
        self._missing: set[int] = set()
        self._due: dict[int, tuple[int, int]] = {}
        """Recalled slot → (step, layer) at which it is released."""
        self._position = BEFORE_ALL
        """(step, layer) of the current layer."""
        self._unreported_hits: list[int] = []
        """Keys that were held when their layers of this step began, since the last `Miss`."""
        self.hits = self.misses = self._invalid = 0

    def handle(self, event: HoldingsEvent) -> list[HoldingsAction]:
        """Apply an event; return the actions that it causes, in the order in which to perform them."""
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
        """True when no expert of the current layer is missing or running."""
        return not self._missing and not self._running

    @property
    def missing(self) -> frozenset[int]:
        """Experts of the current layer that compute waits for."""
        return frozenset(self._missing)

    def is_resident(self, layer: int) -> bool:
        """Return whether all experts of a layer are held."""
        return NO_SLOT not in self._slot_of[layer]

    def table(self) -> dict[int, tuple[int, int]]:
        """Return slot → (layer, expert) of all held experts."""
        return dict(self._key_of)

    def statistics(self) -> HoldingsStatistics:
        """Return the counters so far."""
        return HoldingsStatistics(self.hits, self.misses, self._invalid)

    def _on_layer_started(self, started: LayerStarted) -> list[HoldingsAction]:
        """Send `Miss` before anything runs, so that transfers and kernels overlap."""
        row = self._slot_of[started.layer]
        held = [(expert, row[expert]) for expert in started.experts if row[expert] != NO_SLOT]
        missing = [expert for expert in started.experts if row[expert] == NO_SLOT]
        self._begin_layer(started.step, started.layer)
        self._running, self._missing = dict(held), set(missing)
        self.hits += len(held)
        self.misses += len(missing)
        self._unreported_hits += [started.layer * self._experts + expert for expert, _ in held]
        actions: list[HoldingsAction] = [self._miss(started, missing)] if missing else []
        actions += self._release_due()
        if held:
            actions.append(Run(held))
        return actions

    def _on_layer_entered(self, entered: LayerEntered) -> list[HoldingsAction]:
        if not self.is_resident(entered.layer):
            return []
        self._begin_layer(entered.step, entered.layer)
        held = list(enumerate(self._slot_of[entered.layer]))
        self._running, self._missing = dict(held), set()
        return [*self._release_due(), Run(held)]

    def _on_layer_routes_known(self, known: LayerRoutesKnown) -> list[HoldingsAction]:
        self.hits += len(known.experts)
        self._unreported_hits += [known.layer * self._experts + expert for expert in known.experts]
        return []

    def _begin_layer(self, step: int, layer: int) -> None:
        if step != self._position[0]:
            self._unreported_hits.clear()
        self._position = (step, layer)

    def _miss(self, started: LayerStarted, missing: list[int]) -> Miss:
        hits, self._unreported_hits = self._unreported_hits, []
        return Miss(started.step, started.layer, missing, hits)

    def _on_computed(self, computed: Computed) -> list[HoldingsAction]:
        for expert in computed.experts:
            self._running.pop(expert, None)
        return self._release_due()

    def _on_layer_ended(self) -> list[HoldingsAction]:
        self._running.clear()
        self._missing.clear()
        return self._release_due()

    def _on_filled(self, filled: Filled) -> list[HoldingsAction]:
        slot, key = filled.slot, (filled.layer, filled.expert)
        if not self._is_valid(filled) or self._is_held_elsewhere(slot, key):
            return self._reject(slot)
        if self._key_of.get(slot) == key:
            return []
        if slot in self._key_of:  # the loader wrote into a held slot: its contents are lost
            self._invalid += 1
            self._forget(slot)
        self._key_of[slot] = key
        self._slot_of[filled.layer][filled.expert] = slot
        return self._run_if_missing(slot, *key)

    def _is_valid(self, filled: Filled) -> bool:
        in_layers, in_experts = 0 <= filled.layer < self._layers, 0 <= filled.expert < self._experts
        return in_layers and in_experts and 0 <= filled.slot < self._slots

    def _is_held_elsewhere(self, slot: int, key: tuple[int, int]) -> bool:
        layer, expert = key
        return self._slot_of[layer][expert] not in (NO_SLOT, slot)

    def _reject(self, slot: int) -> list[HoldingsAction]:
        """Release the slot of an invalid message, else nobody would own it; a held slot has lost its contents."""
        self._invalid += 1
        if slot in self._key_of:
            self._due[slot] = BEFORE_ALL
            return self._release_due()
        return [Released([slot], *self._position)] if 0 <= slot < self._slots else []

    def _run_if_missing(self, slot: int, layer: int, expert: int) -> list[HoldingsAction]:
        if layer != self._position[1] or expert not in self._missing:
            return []
        self._missing.discard(expert)
        self._running[expert] = slot
        return [Run([(expert, slot)])]

    def _on_recall(self, recall: Recall) -> list[HoldingsAction]:
        """Mark recalled slots; one that is not held was just released: the two messages crossed."""
        due = (recall.step, recall.layer) if recall.step >= 0 else BEFORE_ALL
        for slot in recall.slots:
            if slot in self._key_of:
                self._due[slot] = min(due, self._due.get(slot, due))
        return self._release_due()

    def _on_loader_joined(self) -> list[HoldingsAction]:
        self._due.clear()
        miss = Miss(*self._position, sorted(self._missing)) if self._missing else None
        return [ResidentTable(self.table(), miss)]

    def _release_due(self) -> list[HoldingsAction]:
        """Release all slots whose recall is due and that no kernel reads."""
        if not self._due:
            return []
        pinned = set(self._running.values())
        slots = [slot for slot, due in self._due.items() if due <= self._position and slot not in pinned]
        for slot in slots:
            self._forget(slot)
        return [Released(slots, *self._position)] if slots else []

    def _forget(self, slot: int) -> None:
        layer, expert = self._key_of.pop(slot)
        self._slot_of[layer][expert] = NO_SLOT
        self._due.pop(slot, None)

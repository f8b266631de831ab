"""The checker of random histories can fail: cores with one fault each are caught."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from expertflow.ipc.messages import Released, ResidentTable
from expertflow.tests.residency.histories import histories, make_holdings, make_ledger, play, worlds
from expertflow.tests.residency.world import Broken, Shape, World
from expertflow.workers.compute.experts.holdings import Holdings, LoaderJoined
from expertflow.workers.loader.events import ComputeJoined, FillDone, LedgerEvent
from expertflow.workers.loader.ledger import Ledger
from expertflow.workers.loader.slots import Slot, SlotTable
from hypothesis import HealthCheck, Phase, given, settings

SEARCH = settings(
    max_examples=4000,
    deadline=None,
    database=None,
    derandomize=True,
    phases=[Phase.generate],
    report_multiple_bugs=False,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)


class ForgetfulTable(SlotTable):
    """Forgets that a slot is being filled: it is handed out again."""

    def start(self, key: int, urgent: bool) -> Slot:
        slot = super().start(key, urgent)
        self.free[slot.number] = slot
        return slot


def forgets_filling(ledger: Any) -> None:
    ledger._table.__class__ = ForgetfulTable


def fills_before_holding(ledger: Any) -> None:
    ledger._table_received = True


def _before(ledger: Any, act: Callable[[Any, LedgerEvent], None]) -> None:
    handle = ledger.handle
    ledger.handle = lambda event: act(ledger, event) or handle(event)


def keeps_recalls_of_the_dead(ledger: Any) -> None:
    ledger._table.void_recalls = lambda: None


def keeps_its_word_to_the_dead(ledger: Any) -> None:
    """Takes what the dead compute held for held by the new one, without telling it."""
    ledger._on_compute_joined = lambda: None


def drops_a_need_that_failed(ledger: Any) -> None:
    def forget(ledger: Any, event: LedgerEvent) -> None:
        if isinstance(event, FillDone) and not event.ok:
            ledger._missing.pop(ledger._table.slots[event.slot].key, None)

    _before(ledger, forget)


def frees_slots_of_the_living(ledger: Any) -> None:
    """Takes the slots of the old compute for free and keeps no contents, but forgets those that are filling."""

    def forget(ledger: Any, event: LedgerEvent) -> None:
        if isinstance(event, ComputeJoined):
            for slot in list(ledger._table.filling.values()):
                ledger._table.release(slot)

    _before(ledger, forget)


def loads_twice(ledger: Any) -> None:
    """Does not see that a needed expert is filling already."""

    def forget(ledger: Any, event: LedgerEvent) -> None:
        for slot in ledger._table.filling.values():
            ledger._table.where.pop(slot.key, None)

    _before(ledger, forget)


class GivesPinned(Holdings):
    """Gives slots back while a kernel reads them."""

    def _release_due(self) -> list[Any]:
        running, self._running = self._running, {}
        actions = super()._release_due()
        self._running = running
        return actions


class Silent(Holdings):
    """Does not tell a new loader what it waits for."""

    def handle(self, event: Any) -> list[Any]:
        actions = super().handle(event)
        return [ResidentTable(actions[0].slots)] if isinstance(event, LoaderJoined) else actions  # type: ignore[union-attr]


class Hoarder(Holdings):
    """Waits for the end of the layer before it gives anything back."""

    def _release_due(self) -> list[Any]:
        return [] if self._missing or self._running else super()._release_due()


class GivesAndKeeps(Holdings):
    """Gives a slot back and goes on using it."""

    def handle(self, event: Any) -> list[Any]:
        before = self.table()
        actions = super().handle(event)
        for slot in (slot for action in actions if isinstance(action, Released) for slot in action.slots):
            self._key_of[slot] = layer, expert = before[slot]
            self._slot_of[layer][expert] = slot
        return actions


LEDGERS = [
    forgets_filling,
    fills_before_holding,
    keeps_recalls_of_the_dead,
    keeps_its_word_to_the_dead,
    drops_a_need_that_failed,
    frees_slots_of_the_living,
    loads_twice,
]


@pytest.mark.parametrize("spoil", LEDGERS)
def test_a_broken_ledger_is_caught(spoil: Callable[[Any], None]) -> None:
    def broken(shape: Shape) -> Ledger:
        ledger = make_ledger(shape)
        spoil(ledger)
        return ledger

    assert_caught(broken, make_holdings)


@pytest.mark.parametrize("kind", [GivesPinned, Silent, Hoarder, GivesAndKeeps])
def test_broken_holdings_are_caught(kind: type[Holdings]) -> None:
    assert_caught(make_ledger, lambda shape: kind(shape.slots, shape.layers, shape.experts))


def assert_caught(make_ledger: Callable[[Shape], Ledger], make_holdings: Callable[[Shape], Holdings]) -> None:
    @SEARCH
    @given(worlds(make_ledger, make_holdings), histories(most_turns=200))
    def search(world: World, history: bytes) -> None:
        play(world, history)

    with pytest.raises((Broken, KeyError, IndexError)):
        search()

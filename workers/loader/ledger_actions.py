"""What the ledger has decided, as changes of its slots and as the actions that tell others of them."""

from __future__ import annotations

from ...ipc.messages import NO_CAUSE, Cause, Filled, Recall
from .events import LedgerAction, PromoteFill, StartFill
from .slots import NOW, Slot, SlotTable


class LedgerActions:
    """Every decision changes the table at once; the actions wait, in their order, until they are taken."""

    def __init__(self, table: SlotTable, layers: int, experts: int) -> None:
        self._table, self._layers, self._experts = table, layers, experts
        self._actions: list[LedgerAction] = []

    def take(self) -> list[LedgerAction]:
        """What is to be done, each action once."""
        actions, self._actions = self._actions, []
        return actions

    def start(self, key: int, urgent: bool, cause: Cause) -> None:
        slot = self._table.start(key, urgent)
        slot.cause, slot.recall_cause = cause, NO_CAUSE
        self._actions.append(StartFill(slot.number, *divmod(key, self._experts), urgent, cause))

    def promote(self, slot: Slot) -> None:
        slot.urgent = True
        self._actions.append(PromoteFill(slot.number))

    def announce(self, slot: Slot) -> None:
        self._actions.append(Filled(slot.number, *divmod(slot.key, self._experts), slot.cause))

    def recall(self, slots: list[Slot], tick: int, cause: Cause) -> None:
        """Ask compute for these slots after `tick`, or NOW."""
        for slot in slots:
            self._table.recall(slot, tick)
            slot.recall_cause = cause
        if slots:
            step, layer = (-1, -1) if tick == NOW else divmod(tick, self._layers)
            self._actions.append(Recall([slot.number for slot in slots], step, layer, cause))

"""What is brought next, and which slots compute is asked for: first for needs, then for what is foretold."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import NamedTuple

import numpy as np

from ...ipc.messages import Cause
from .eviction import EvictionRanking
from .ledger_actions import LedgerActions
from .prefetch_accounting import PrefetchAccounting
from .prefetch_plan import PrefetchPlan
from .slots import NOW, SlotTable

NEVER = 1 << 62


class PrefetchLimits(NamedTuple):
    """How much may be under way."""

    fills_in_flight: int
    """Transfers at a time, besides as many urgent ones."""
    recalls_ahead: int
    """Slots that are free or asked for in favour of prefetches."""
    prefetches: int
    """Experts that are there ahead of their need (R5)."""
    fully_resident: bool
    """Every expert has a slot: all are brought in sooner or later."""


class PrefetchScheduler:
    """Reads advice and outlook, and gives orders."""

    def __init__(
        self,
        table: SlotTable,
        orders: LedgerActions,
        advice: PrefetchPlan,
        outlook: EvictionRanking,
        prefetched: PrefetchAccounting,
        limits: PrefetchLimits,
    ) -> None:
        self._table, self._orders, self._prefetch_plan, self._eviction = table, orders, advice, outlook
        self._prefetched, self._limits = prefetched, limits
        self.failed_keys: set[int] = set()
        """Never prefetched again, or a broken file would be read in a loop."""
        self.prefetches = 0

    def serve(self, needs: Iterable[int], cause: Cause) -> None:
        """Needs take free slots first, then slots that compute is asked for now; `cause` is theirs."""
        missing = [key for key in needs if key not in self._table.where]
        if not missing:
            return
        group = self._table.group_of(missing[0])  # all are of one layer
        startable = min(
            len(missing), self._table.room(group), self._limits.fills_in_flight - self._table.urgent_fills()
        )
        for key in missing[: max(startable, 0)]:
            self._orders.start(key, urgent=True, cause=cause)
        waiting = len(missing) - max(startable, 0)
        shortage = waiting - self._table.room(group) - self._table.returning_now(group)
        if shortage > 0:
            victims = self._eviction.for_needs(self._table.evictable_for(group), shortage)
            later = self._table.returning_later(group)[: shortage - len(victims)]  # a need cannot wait for a promise
            self._orders.recall([self._table.where[key] for key in victims] + later, NOW, cause)

    def prefetch(self) -> None:
        """What is worth bringing in ahead of need."""
        room = self._prefetch_room()
        startable = min(self._limits.fills_in_flight - len(self._table.filling), len(self._table.free), room)
        if startable > 0:
            self._start(startable, room)
            room = self._prefetch_room()
        if not self._limits.fully_resident:
            self._recall_ahead(room)

    def _start(self, most: int, room: int) -> None:
        for due, key in list(islice(self._wanted(), self._window(room))):
            if most > 0 and self._table.room(self._table.group_of(key)) > 0:
                most -= 1
                self._orders.start(key, urgent=False, cause=self._cause(due, key))
                self._prefetched.bring(key, due)
                self.prefetches += 1

    def _cause(self, due: int, key: int) -> Cause:
        return Cause("policy") if due == NEVER else self._prefetch_plan.cause(due, key)

    def _window(self, room: int) -> int:
        """How many of the wanted experts are looked at, the first due first."""
        return max(min(self._limits.recalls_ahead, room), 0)

    def _prefetch_room(self) -> int:
        """How many more experts may be there ahead of their need (R5).

        Slots asked for ahead stay under the same limit. So there is always a slot that is not promised for later, and a
        need gets on without asking twice for any.
        """
        return self._limits.prefetches - self._prefetched.waiting(self._prefetch_plan.position)

    def _recall_ahead(self, room: int) -> None:
        """Asks for slots that the next prefetches will want, so that none waits for a round trip (R3)."""
        promised: defaultdict[int, int] = defaultdict(int)
        victims: dict[tuple[int, int], tuple[int, int] | None] = {}
        for due, key in islice(self._wanted(), self._window(room)):
            group = self._table.group_of(key)
            promised[group] += 1
            if promised[group] <= self._table.room(group) + self._table.returning(group):
                continue
            if (group, due) not in victims:
                victims[group, due] = self._eviction.for_prefetch(self._table.evictable_for(group), due)
            choice = victims[group, due]
            if choice is not None and self._eviction.gains(key, due, choice[0]):
                self._orders.recall([self._table.where[choice[0]]], choice[1], self._cause(due, key))
                victims.clear()

    def _wanted(self) -> Iterator[tuple[int, int]]:
        """(due tick, key) of what is worth bringing in ahead of need, the first due first."""
        everything: Iterable[tuple[int, int]] = ()
        if self._limits.fully_resident:
            everything = ((NEVER, key) for key in np.flatnonzero(~self._table.placed).tolist())
        skipped = set(self.failed_keys)
        for due, key in chain(self._prefetch_plan.wanted(self._table.placed), everything):
            if key not in skipped:
                skipped.add(key)
                yield due, key

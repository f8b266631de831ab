"""Chooses what is filled next and which slots are recalled: first for misses, then for prefetches."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice

import numpy as np

from ...ipc.messages import Cause
from .eviction import EvictionRanking
from .prefetch_limits import PrefetchLimits
from .prefetch_plan import PrefetchPlan
from .slots import ALL_LAYERS, NOW, LedgerActions, SlotTable

NEVER = 1 << 62
USUAL_CHANCE = 0.7
"""Chance of use from which on an expert of the next step's first layer is fetched before that step is predicted."""
NOT_PREFETCHED = -1


class PrefetchAccounting:
    """Due tick of each prefetched expert until it is known whether its prediction was right."""

    def __init__(self, keys: int) -> None:
        self._due = np.full(keys, NOT_PREFETCHED, dtype=np.int64)
        self._finished = NOT_PREFETCHED
        """Last tick of the last step whose routing is known."""
        self.useful = 0
        self.wasted = 0

    def add(self, key: int, due: int) -> None:
        """Record that `key` is being prefetched for tick `due`."""
        self._due[key] = due

    def void(self, key: int) -> bool:
        """Stop counting `key` as a prefetch: compute asked for it, or its transfer failed. Return whether it was."""
        was_prefetch = bool(self._due[key] != NOT_PREFETCHED)
        self._due[key] = NOT_PREFETCHED
        return was_prefetch

    def evict(self, key: int, position: int) -> bool:
        """Count an evicted prefetch as wasted if its layer has not begun or its step is over; return whether it was.

        In between, the routing of the step decides (`judge`).
        """
        wasted = bool(self._due[key] > position or NOT_PREFETCHED < self._due[key] <= self._finished)
        if wasted:
            self.void(key)
            self.wasted += 1
        return wasted

    def unused(self, used: np.ndarray, first_tick: int, last_tick: int) -> list[int]:
        """Return the keys prefetched for these ticks that are not in `used`, int64 [count]."""
        prefetched = np.flatnonzero((self._due >= first_tick) & (self._due <= last_tick))
        return np.setdiff1d(prefetched, used).tolist()

    def judge(self, used: np.ndarray, placed: np.ndarray, tick: int) -> None:
        """Count useful and wasted prefetches of a step that ended at `tick`.

        `used`: the keys it used, int64 [count]. `placed`: the keys that have a slot, bool [layers * experts].
        """
        self._finished = max(self._finished, tick)
        right = used[self._due[used] != NOT_PREFETCHED]
        self._due[right] = NOT_PREFETCHED
        wrong = (self._due != NOT_PREFETCHED) & (self._due <= tick) & ~placed
        self._due[wrong] = NOT_PREFETCHED
        self.useful += len(right)
        self.wasted += int(np.count_nonzero(wrong))

    def waiting(self, position: int) -> int:
        """Return the number of prefetches whose layer has not begun at tick `position`."""
        return int(np.count_nonzero(self._due > position))


class PrefetchScheduler:
    """Reads prefetch plan and eviction ranking; decides fills and recalls."""

    def __init__(
        self,
        table: SlotTable,
        actions: LedgerActions,
        plan: PrefetchPlan,
        ranking: EvictionRanking,
        accounting: PrefetchAccounting,
        limits: PrefetchLimits,
        chances: Callable[[], np.ndarray] | None = None,
    ) -> None:
        """`chances` returns the chance that the next step uses each expert, float64 [layers, experts], if known."""
        self._table, self._actions, self._plan, self._ranking = table, actions, plan, ranking
        self._accounting, self._limits = accounting, limits
        self._chances = chances
        self.failed_keys: set[int] = set()
        """Keys whose transfer failed. They are not prefetched, or a broken file would be read in a loop."""
        self.prefetches = 0

    def serve_misses(self, keys: Iterable[int], cause: Cause) -> None:
        """Fill missing `keys` of one layer into free slots, and recall slots now for the rest."""
        missing = [key for key in keys if key not in self._table.where]
        if not missing:
            return
        group = self._table.group_of(missing[0])
        startable = min(
            len(missing), self._table.room(group), self._limits.fills_in_flight - self._table.urgent_fills()
        )
        for key in missing[: max(startable, 0)]:
            self._actions.start(key, urgent=True, cause=cause)
        waiting = min(len(missing) - max(startable, 0), self._limits.misses_ahead)
        shortage = waiting - self._table.room(group) - self._table.returning_now(group)
        if shortage > 0:
            victims = self._ranking.victims_for_misses(self._table.evictable_for(group), shortage)
            later = self._table.returning_later(group)[: shortage - len(victims)]  # a miss cannot wait for these
            self._actions.recall([self._table.where[key] for key in victims] + later, NOW, cause)

    def prefetch(self, may_start: bool) -> None:
        """Start the prefetches that fit now, if they may start, and recall slots for those that come next."""
        room = self._prefetch_room()
        startable = min(self._limits.fills_in_flight - len(self._table.filling), len(self._table.free), room)
        if may_start and startable > 0:
            self._start(startable, room)
            room = self._prefetch_room()
        if not self._table.fully_resident:
            self._recall_ahead(room)
            self._recall_spare()

    def _start(self, max_starts: int, room: int) -> None:
        for due, key in list(islice(self._wanted(), self._window(room))):
            if max_starts > 0 and self._table.room(self._table.group_of(key)) > 0:
                max_starts -= 1
                self._actions.start(key, urgent=False, cause=self._cause(due, key))
                self._accounting.add(key, due)
                self.prefetches += 1

    def _cause(self, due: int, key: int) -> Cause:
        return Cause("policy") if due == NEVER else self._plan.cause(due, key)

    def _window(self, room: int) -> int:
        """Return how many of the wanted experts to look at, the first due first."""
        return max(min(self._limits.recalls_ahead, room), 0)

    def _prefetch_room(self) -> int:
        """Return how many more experts may be prefetched (R5).

        Slots recalled ahead stay under the same limit. So some slot is always left that no prefetch has claimed, and a
        miss gets it without a second recall.
        """
        return self._limits.prefetches - self._accounting.waiting(self._plan.position)

    def _recall_ahead(self, room: int) -> None:
        """Recall slots that the next prefetches will want, so that none waits for a round trip (R3)."""
        claimed: defaultdict[int, int] = defaultdict(int)
        victims: dict[tuple[int, int], tuple[int, int] | None] = {}
        for due, key in islice(self._wanted(), self._window(room)):
            group = self._table.group_of(key)
            claimed[group] += 1
            if claimed[group] <= self._table.room(group) + self._table.returning(group):
                continue
            if (group, due) not in victims:
                victims[group, due] = self._ranking.victim_for_prefetch(self._table.evictable_for(group), due)
            choice = victims[group, due]
            if choice is not None and self._ranking.is_gain(key, due, choice[0]):
                self._actions.recall([self._table.where[choice[0]]], choice[1], self._cause(due, key))
                victims.clear()

    def _recall_spare(self) -> None:
        """Recall slots for a miss to come, where layers share them. Without predictions, evict at misses alone.

        A predicted or usual expert stays: a prefetch would bring it back into the spare slot, again and again.
        """
        shortage = self._limits.spare - self._table.room(ALL_LAYERS) - self._table.returning(ALL_LAYERS)
        if shortage <= 0 or not self._plan.plans or not self._table.is_shared:
            return
        unwanted = self._table.evictable & self._ranking.unpredicted()
        unwanted[np.flatnonzero(self._usual()[1])] = False
        victims = self._ranking.victims_for_misses(unwanted, shortage)
        self._actions.recall([self._table.where[key] for key in victims], NOW, Cause("policy"))

    def _wanted(self) -> Iterator[tuple[int, int]]:
        """Yield (due tick, key) of experts worth prefetching, the first due first; the unpredicted are due NEVER."""
        unpredicted: Iterable[tuple[int, int]] = ()
        if self._table.fully_resident:
            unpredicted = ((NEVER, key) for key in np.flatnonzero(~self._table.placed).tolist())
        skipped = set(self.failed_keys)
        for due, key in chain(self._plan.wanted(self._table.placed), self._missing_usual(), unpredicted):
            if key not in skipped:
                skipped.add(key)
                yield due, key

    def _missing_usual(self) -> Iterator[tuple[int, int]]:
        """Yield (due tick, key) of usual experts that have no slot, the likeliest first: the link would be idle."""
        due, chances = self._usual()
        likeliest = np.argsort(-chances, kind="stable")[: np.count_nonzero(chances)]
        yield from ((due, key) for key in likeliest[~self._table.placed[likeliest]].tolist())

    def _usual(self) -> tuple[int, np.ndarray]:
        """Return the first tick of the next step, and by key the chances of its usual experts, float64 [n], others 0.

        Most steps use them in the first layer. There are none once that step is predicted, nor while nothing is.
        """
        if self._chances is None or not self._plan.plans:
            return 0, np.empty(0)
        chances = self._chances()
        step = self._plan.position // len(chances) + 1
        if self._plan.plan_for(step) is not None:
            return 0, np.empty(0)
        return step * len(chances), np.where(chances[0] >= USUAL_CHANCE, chances[0], 0.0)

"""Which held slots go: what is predicted to be used stays longest, the policy decides among the rest (R5)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from .advice import Advice
from .policy import Policy
from .prefetched import Prefetched
from .slots import NOT_RECALLED, NOW, Owner, Slot, SlotTable

NEVER = 1 << 62


class Victims:
    """Reads the ledger's parts; changes none."""

    def __init__(self, table: SlotTable, advice: Advice, policy: Policy, prefetched: Prefetched) -> None:
        self._table, self._advice, self._policy, self._prefetched = table, advice, policy, prefetched

    def for_needs(self, count: int) -> list[Slot]:
        """Up to `count` slots to be returned now.

        Wrong predictions go first, then what no plan wants by policy, then what is wanted last.
        """
        wanted: list[tuple[int, Slot]] = []
        chosen: dict[int, Slot] = {}
        for slot in self._candidates():
            if len(chosen) == count:
                return list(chosen.values())
            uses = self._advice.uses(slot.key)
            if uses:
                wanted.append((uses[0], slot))
            else:
                chosen[slot.number] = slot
        wanted.sort(key=lambda pair: -pair[0])
        return list(({**chosen, **{slot.number: slot for _, slot in wanted}}).values())[:count]

    def for_prefetch(self, due: int) -> tuple[Slot, int] | None:
        """The slot to empty for an expert that is due at tick `due`, and the tick after which it may go (or NOW).

        Never one that is due at the same time. One that is due before is taken after that, so that slots roll forward.
        One that is due later is taken only when there is nothing else, the last due first.
        """
        best: tuple[int, int] | None = None
        victim = None
        for slot in self._candidates():
            uses = self._advice.uses(slot.key)
            if not uses:
                return slot, NOW
            rank = _rank(uses, due)
            if rank is not None and (best is None or rank > best):
                best, victim = rank, slot
        return (victim, -best[1]) if victim and best else None

    def _candidates(self) -> Iterator[Slot]:
        """Held slots that compute was not asked for yet."""
        for key in chain(self._mispredicted(), self._policy.victims(self._advice.position)):
            slot = self._table.where.get(key)
            if slot is not None and slot.owner is Owner.HELD and slot.recall == NOT_RECALLED:
                yield slot

    def _mispredicted(self) -> Iterator[int]:
        """Experts brought in for nothing: their step is over, or the plan that wanted them is gone."""
        yield from self._prefetched.wrong()
        for key in self._prefetched.pending(self._advice.position):
            if not self._advice.uses(key):
                yield key


def _rank(uses: list[int], due: int) -> tuple[int, int] | None:
    """(next use after `due`, −last use before it or −NOW): the greatest is the best victim; None: not a victim."""
    if due in uses:
        return None
    before = max((tick for tick in uses if tick < due), default=NOW)
    after = min((tick for tick in uses if tick > due), default=NEVER)
    return after, -before

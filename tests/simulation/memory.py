"""The expert slots in shared memory: what lies in each, who writes and who reads (I3)."""

from __future__ import annotations

from expertflow.tests.simulation.agenda import require
from expertflow.tests.simulation.current import CURRENT

Key = tuple[int, int]
TORN: Key = (-1, -1)
"""Contents of a slot that is, or was when its writer died, half written."""


class Memory:
    """Contents of every slot. It outlives the processes that map it."""

    def __init__(self, slots: int) -> None:
        self.contents = [TORN] * slots
        self.writes = [0] * slots
        """Number of writes that were begun, for each slot."""
        self.writing: set[int] = set()
        """Slots into which the living loader writes."""

    def begin_write(self, slot: int, key: Key) -> None:
        """Begin to overwrite a slot."""
        require(slot not in self.writing, "I3", f"slot {slot} is written by two transfers")
        self.writing.add(slot)
        compute = CURRENT.world.live("compute")
        if compute is not None and compute.shell is not None:
            reads, held = compute.shell.reads, compute.shell.held()
            require(slot not in reads, "I3", f"slot {slot} is written while compute reads it")
            require(slot not in held, "I3", f"slot {slot} is written while compute holds {held.get(slot)} in it")
            require(key not in held.values(), "R1", f"{key} is loaded although compute holds it")
        self.writes[slot] += 1
        self.contents[slot] = TORN

    def end_write(self, slot: int, key: Key) -> None:
        """End a write."""
        self.writing.discard(slot)
        self.contents[slot] = key

    def check_read(self, slot: int, key: Key, writes: int | None = None) -> int:
        """Check that a slot holds what is read from it; return its number of writes."""
        found = self.contents[slot]
        words = "half an expert" if found == TORN else str(found)
        require(found == key, "I3", f"slot {slot} is read as {key}, but holds {words}")
        require(writes in (None, self.writes[slot]), "I3", f"slot {slot} was overwritten while compute read it")
        return self.writes[slot]

"""The host store before a device: random histories of reads and copies that end in any order."""

from __future__ import annotations

import random
from contextlib import suppress
from typing import Any

import pytest
from expertflow.ipc.messages import Copy
from expertflow.workers.loader.events import FillDone
from expertflow.workers.loader.host_tier import HostTier, PromoteRead, ReadInto
from hypothesis import given, settings
from hypothesis import strategies as st

EXPERTS, KEYS = 4, 12


class World:
    """Files, store and compute as far as the tier can tell; it checks as it goes."""

    def __init__(self, seed: int, places: int, full: bool) -> None:
        self.random = random.Random(seed)
        self.tier = HostTier(places, EXPERTS, full)
        self.content: dict[int, int] = {key: key for key in range(KEYS)} if full else {}
        self.reads: dict[int, int] = {}
        """Place → key."""
        self.copies: dict[int, Copy] = {}
        self.open: dict[int, int] = {}
        """Slot → key it waits for."""
        self.wrong: list[str] = []

    def do(self, actions: list[Any]) -> None:
        for action in actions:
            match action:
                case ReadInto(place, layer, expert):
                    used = [copy.place for copy in self.copies.values()]
                    self.expect(place not in self.reads and place not in used, f"place {place} is overwritten")
                    self.content.pop(place, None)
                    self.reads[place] = layer * EXPERTS + expert
                case Copy() as copy:
                    found, wanted = self.content.get(copy.place), copy.layer * EXPERTS + copy.expert
                    self.expect(found == wanted == self.open.get(copy.slot), f"{copy} copies {found}")
                    self.copies[copy.number] = copy
                case FillDone(slot):
                    self.expect(self.open.pop(slot, None) is not None, f"slot {slot} is filled twice")
                case PromoteRead(place):
                    self.expect(place in self.reads, "a read is hurried that does not run")

    def expect(self, condition: bool, what: str) -> None:
        if not condition:
            self.wrong.append(what)

    def fetch(self) -> None:
        """No expert is on its way twice: so the ledger asks."""
        keys = [key for key in range(KEYS) if key not in self.open.values()]
        if keys:
            slot, key = max([-1, *self.open]) + 1, self.random.choice(keys)
            self.open[slot] = key
            self.do(self.tier.fetch(slot, *divmod(key, EXPERTS), self.random.random() < 0.5))

    def end_read(self) -> None:
        if self.reads:
            place = self.random.choice(list(self.reads))
            self.content[place] = self.reads.pop(place)
            self.do(self.tier.on_read(place))

    def end_copies(self) -> None:
        ended = [number for number in self.copies if self.random.random() < 0.5]
        for number in ended:
            del self.copies[number]
        self.do(self.tier.on_copied(ended))

    def hurry(self) -> None:
        if self.open:
            self.do(self.tier.promote(self.random.choice(list(self.open))))

    def lose_compute(self) -> None:
        self.copies.clear()
        self.do(self.tier.reissue_copies())

    def play(self, turns: int) -> list[str]:
        """What went wrong; in the end everything that was asked for is there."""
        moves = [self.fetch] * 4 + [self.end_read] * 3 + [self.end_copies] * 3 + [self.hurry, self.lose_compute]
        for _ in range(turns):
            self.random.choice(moves)()
        for _ in range(20 * KEYS):
            self.end_read()
            self.end_copies()
        self.expect(not self.open, f"never filled: {self.open}")
        return self.wrong


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(0, 60))
def test_nothing_is_overwritten_too_early_and_everything_comes(seed: int, places: int, turns: int) -> None:
    assert World(seed, places, full=False).play(turns) == []


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6))
def test_a_whole_store_is_never_read_into(seed: int) -> None:
    world = World(seed, KEYS, full=True)
    assert world.play(40) == [] and world.tier.misses == 0


def test_a_place_that_is_not_kept_is_overwritten_under_its_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HostTier, "_pin", lambda tier, place: None)
    assert any("overwritten" in word for seed in range(20) for word in words_of(seed))


def words_of(seed: int) -> list[str]:
    """Of a world that may break down over it."""
    world = World(seed, 2, full=False)
    with suppress(KeyError):
        world.play(40)
    return world.wrong


def test_urgent_fetches_get_the_next_place() -> None:
    """One place: what a layer waits for goes before what was asked for ahead."""
    tier = HostTier(1, EXPERTS, full=False)
    assert tier.fetch(0, 0, 0, False) == [ReadInto(0, 0, 0, False)]
    assert tier.fetch(1, 0, 1, False) == tier.fetch(2, 0, 2, True) == []
    assert tier.promote(0) == [PromoteRead(0)]
    [copy] = tier.on_read(0)
    assert isinstance(copy, Copy) and copy.urgent
    assert tier.on_copied([copy.number]) == [FillDone(0), ReadInto(0, 0, 2, True)]


def test_the_place_of_what_was_copied_longest_ago_goes_first() -> None:
    tier = HostTier(2, EXPERTS, full=False)
    for slot, expert in enumerate((0, 1)):
        tier.fetch(slot, 0, expert, False)
    first, second = (tier.on_read(place)[0] for place in (0, 1))
    assert isinstance(first, Copy) and isinstance(second, Copy)
    tier.on_copied([first.number, second.number])
    [reissue_copies] = tier.fetch(2, 0, 0, False)
    assert isinstance(reissue_copies, Copy) and reissue_copies.place == 0
    assert tier.fetch(3, 0, 2, False) == [ReadInto(1, 0, 2, False)]

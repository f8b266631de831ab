"""I3 on a device: random histories of copies, kernels and returned slots, run in random orders that respect events
alone; each wait, left out, is found."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from expertflow.ipc.messages import Copy
from expertflow.workers.compute.device.copy_scheduler import CopyScheduler
from expertflow.workers.compute.device.fake import FakeDevice
from hypothesis import given, settings
from hypothesis import strategies as st

STRIDE, SLOTS, PLACES, TURNS = 8, 3, 4, 60


class World:
    """What the protocol allows: a slot is filled once it was given back, given back once its copy has ended, and a
    place of the store is written once the copies out of it have ended."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._device = FakeDevice(seed)
        self._memory = self._device.allocate(SLOTS * STRIDE)
        self._store = torch.zeros(PLACES * STRIDE, dtype=torch.uint8)
        self._traffic = CopyScheduler(self._device, self._memory, self._store, STRIDE, lambda layer, expert: STRIDE)
        self._content = [0] * PLACES
        self._held: dict[int, int] = {}
        """Slot → content it was filled with."""
        self._under_way: dict[int, Copy] = {}
        self._number = 0
        self.wrong: list[str] = []

    def play(self) -> list[str]:
        """What went wrong in one history."""
        moves: list[Callable[[], None]] = [self._write, self._copy, self._kernel, self._kernel, self._give, self._look]
        for _ in range(TURNS):
            self._random.choice(moves)()
        self._device.close()
        self._look()
        if self._under_way:
            self.wrong.append("a copy's end was never told")
        return self.wrong

    def _write(self) -> None:
        """The loader reads something else into a place."""
        busy = {copy.place for copy in self._under_way.values()}
        place = self._random.randrange(PLACES)
        if place not in busy:
            self._content[place] = self._random.randrange(1, 200)
            self._store[place * STRIDE : (place + 1) * STRIDE] = self._content[place]

    def _copy(self) -> None:
        free = [slot for slot in range(SLOTS) if slot not in self._held]
        if free:
            self._number += 1
            slot, place = self._random.choice(free), self._random.randrange(PLACES)
            order = Copy(self._number, slot, 0, place, place, urgent=self._random.random() < 0.5)
            self._held[slot] = self._content[place]
            self._under_way[order.number] = order
            self._traffic.copy(order)

    def _kernel(self) -> None:
        if self._held:
            slot = self._random.choice(list(self._held))
            wanted = self._held[slot]
            self._traffic.read(slot)
            self._device.kernels.launch(lambda: self._check(slot, wanted))

    def _check(self, slot: int, wanted: int) -> None:
        found = self._memory[slot * STRIDE : (slot + 1) * STRIDE]
        if not bool((found == wanted).all()):
            self.wrong.append(f"a kernel found {found.tolist()} in slot {slot}, not {wanted}")

    def _give(self) -> None:
        settled = [slot for slot in self._held if not self._traffic.is_pending({slot})]
        if settled:
            slot = self._random.choice(settled)
            del self._held[slot]
            self._traffic.release([slot])

    def _look(self) -> None:
        for number in self._traffic.take_finished():
            del self._under_way[number]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6))
def test_kernels_find_what_was_copied_for_them(seed: int) -> None:
    assert World(seed).play() == []


def told_at_once(traffic: CopyScheduler) -> list[int]:
    """Every copy under way, ended or not."""
    numbers = [copy.number for lane in traffic._lanes for copy in lane]
    for lane in traffic._lanes:
        lane.clear()
    return numbers


@pytest.mark.parametrize(
    ("name", "mutant"),
    [("_await_copy", lambda *args: None), ("_await_kernels", lambda *args: None), ("take_finished", told_at_once)],
)
def test_each_wait_is_needed(monkeypatch: pytest.MonkeyPatch, name: str, mutant: Callable[..., object]) -> None:
    monkeypatch.setattr(CopyScheduler, name, mutant)
    assert any(World(seed).play() for seed in range(40))

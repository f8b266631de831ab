"""Layers over a late device's slots: kernels of a layer that is held whole, and of what is there of one that is not."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from expertflow.ipc.messages import ComputeFromLoader, CopiesDone, Copy, Message, Miss, Recall, Released
from expertflow.workers.compute.device.copy_scheduler import CopyScheduler
from expertflow.workers.compute.device.fake import FakeDevice
from expertflow.workers.compute.device.residency import DeviceResidency, DeviceSlotViews
from expertflow.workers.compute.experts.holdings import Holdings

LAYERS, EXPERTS, STRIDE, ROUNDS = 2, 3, 64, 30
SLOTS = LAYERS * EXPERTS


class Loader:
    """Brings what is needed, and now and then takes what is held; each expert's bytes are a number of its own."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self.device = FakeDevice(seed)
        self.memory = self.device.allocate(SLOTS * STRIDE)
        store = torch.arange(SLOTS, dtype=torch.uint8).repeat_interleave(STRIDE)
        self._traffic = CopyScheduler(self.device, self.memory, store, STRIDE, lambda layer, expert: STRIDE)
        self._inbox: list[ComputeFromLoader] = []
        self._held: dict[int, int] = {}
        """Slot → key, as the loader knows."""
        self._copies = 0
        self._under_way: set[int] = set()
        views = object.__new__(DeviceSlotViews)  # what slots mean is not asked here
        self.residency = DeviceResidency(
            self._traffic, Holdings(SLOTS, LAYERS, EXPERTS), views, self._receive, self._take, self._take, lambda: 0
        )
        self.wrong: list[str] = []
        self.entered = 0

    def bring(self, keys: list[int]) -> None:
        """Order copies of experts that are not held."""
        for key in keys:
            free = [slot for slot in range(SLOTS) if slot not in self._held]
            if key not in self._held.values() and free:
                slot = self._random.choice(free)
                self._held[slot], self._copies = key, self._copies + 1
                self._under_way.add(self._copies)
                layer, expert = divmod(key, EXPERTS)
                self._inbox.append(Copy(self._copies, slot, layer, expert, key, urgent=self._random.random() < 0.5))

    def recall(self) -> None:
        if self._held:
            self._inbox.append(Recall(self._random.sample(sorted(self._held), k=1)))

    def _receive(self, message: Message) -> None:
        match message:
            case Miss(layer=layer, experts=experts):
                self.bring([layer * EXPERTS + expert for expert in experts])
            case Released(slots):
                for slot in slots:
                    del self._held[slot]
            case CopiesDone(numbers):
                self._under_way.difference_update(numbers)
            case _:
                raise AssertionError(message)

    def _take(self) -> list[ComputeFromLoader]:
        inbox, self._inbox = self._inbox, []
        return inbox

    def step(self, number: int) -> None:
        """Every layer of a step: some experts are chosen, and kernels check that they find them in their slots."""
        self.residency.begin_step(number)
        for layer in range(LAYERS):
            if self._random.random() < 0.7:
                self.bring(self._random.sample(range(SLOTS), k=SLOTS))
            if self._random.random() < 0.3:
                self.recall()
            chosen = sorted(self._random.sample(range(EXPERTS), k=2))
            slots = self.residency.enter(layer)
            if slots is None:
                self._run_waves(layer, chosen)
            else:
                self.entered += 1
                self._launch(layer, list(enumerate(slots)))
                self.residency.leave(lambda chosen=chosen: np.array([chosen]))

    def _run_waves(self, layer: int, chosen: list[int]) -> None:
        self.residency.begin(layer, chosen)
        seen = []
        for wave in self.residency.waves():
            self._launch(layer, wave)
            seen += [expert for expert, _ in wave]
        if sorted(seen) != chosen:
            self.wrong.append(f"{seen} ran instead of {chosen}")

    def _launch(self, layer: int, runs: list[tuple[int, int]]) -> None:
        self.device.kernels.launch(partial(self._check, layer, runs))

    def _check(self, layer: int, runs: list[tuple[int, int]]) -> None:
        for expert, slot in runs:
            found = self.memory[slot * STRIDE : (slot + 1) * STRIDE].unique().tolist()
            if found != [layer * EXPERTS + expert]:
                self.wrong.append(f"expert {expert} of layer {layer} read {found} in slot {slot}")


def play(seed: int) -> Loader:
    loader = Loader(seed)
    for number in range(ROUNDS):
        loader.step(number)
    loader.device.close()
    return loader


def test_kernels_of_whole_layers_and_of_waves_find_their_experts() -> None:
    """I3; and every chosen expert is counted once, as hit or as miss."""
    loaders = [play(seed) for seed in range(25)]
    assert [loader.wrong for loader in loaders] == [[]] * len(loaders)
    assert sum(loader.entered for loader in loaders) > 50
    for loader in loaders:
        counts = loader.residency.counts
        assert counts.hits + counts.misses == 2 * LAYERS * ROUNDS


def enter_without_reading(residency: DeviceResidency, layer: int) -> list[int] | None:
    """As it is, but kernels do not wait for copies into the slots of a whole layer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CopyScheduler, "read", lambda *anything: None)
        return enter_as_it_is(residency, layer)


enter_as_it_is = DeviceResidency.enter


@pytest.mark.parametrize(
    ("owner", "name", "mutant"),
    [
        (DeviceResidency, "enter", enter_without_reading),
        (CopyScheduler, "_await_copy", lambda *anything: None),
        (CopyScheduler, "_await_kernels", lambda *anything: None),
    ],
)
def test_each_wait_is_needed(
    monkeypatch: pytest.MonkeyPatch, owner: type, name: str, mutant: Callable[..., object]
) -> None:
    monkeypatch.setattr(owner, name, mutant)
    assert any(play(seed).wrong for seed in range(25))

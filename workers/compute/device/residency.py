"""Residency over a device's slots: what the loader orders is enqueued, and counts as held at once."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ....ipc.messages import ComputeFromLoader, Copied, Copy, Filled, Given, HeldFromLoader, Holding, Message
from ...checkpoint.survey import Survey
from ..holdings import Holdings
from ..residency import IDLE_MS, Residency
from ..slots import ExpertWeights, SlotViews
from .traffic import SlotTraffic

WATCHING_MS = 1
"""Between two looks at copies under way, while nothing else happens."""


class DeviceSlotViews(SlotViews):
    """Views for kernels that are launched next: asking for an expert makes them wait for its copy."""

    def __init__(self, memory: torch.Tensor, survey: Survey, traffic: SlotTraffic) -> None:
        super().__init__(memory, survey)
        self._traffic = traffic

    def weights(self, slot: int, layer: int, expert: int) -> ExpertWeights:
        self._traffic.read(slot)
        return super().weights(slot, layer, expert)


class DeviceResidency(Residency):
    """As on a CPU, but for what the messages mean: `Copy` is enqueued, `Given` leaves an event behind."""

    def __init__(
        self,
        traffic: SlotTraffic,
        holdings: Holdings,
        views: DeviceSlotViews,
        send: Callable[[Message], None],
        hear: Callable[[], list[ComputeFromLoader]],
        wait: Callable[[], list[ComputeFromLoader]],
        clock_ns: Callable[[], int],
    ) -> None:
        super().__init__(holdings, views, self._tell, self._look, self._enqueue_after(wait), clock_ns)
        self._traffic, self._say, self._listen = traffic, send, hear

    @property
    def counters(self) -> dict[str, int | float]:
        return {**super().counters, **self._traffic.counters}

    @property
    def ready(self) -> int:
        """How many experts of the layer that was begun can be launched without waiting for the loader."""
        return len(self._runs)

    def begin(self, layer: int, experts: list[int]) -> None:
        """What is there goes first: a kernel that waits for its copy holds up all behind it."""
        super().begin(layer, experts)
        self._runs.sort(key=lambda run: not self._traffic.is_filled(run[1]))

    def receive(self, message: ComputeFromLoader) -> None:
        super().receive(self._enqueue(message))

    def tend(self) -> int:
        self.report()
        return WATCHING_MS if self._traffic.under_way else IDLE_MS

    def report(self) -> None:
        """Tell the loader which copies have ended."""
        if numbers := self._traffic.finished():
            self._say(Copied(numbers))

    def _tell(self, message: Message) -> None:
        if isinstance(message, Given):
            self._part_with(message.slots)
        elif isinstance(message, Holding):
            # A new loader does not know from which host places copies run: none does when it hears of us.
            self._traffic.finish()
            self._traffic.finished()
        self._say(message)

    def _part_with(self, slots: list[int]) -> None:
        """The loader takes a slot for filling until it has heard of the copy's end: it must hear of that first."""
        if self._traffic.is_under_way(set(slots)):
            self._traffic.finish(slots)
            self.report()
        self._traffic.release(slots)

    def _look(self) -> list[HeldFromLoader]:
        messages = [self._enqueue(message) for message in self._listen()]
        self.report()
        return messages

    def _enqueue_after(self, wait: Callable[[], list[ComputeFromLoader]]) -> Callable[[], list[HeldFromLoader]]:
        return lambda: [self._enqueue(message) for message in wait()]

    def _enqueue(self, message: ComputeFromLoader) -> HeldFromLoader:
        if not isinstance(message, Copy):
            return message
        self._traffic.copy(message)
        return Filled(message.slot, message.layer, message.expert)

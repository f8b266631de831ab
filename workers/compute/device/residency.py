"""Residency over a device's slots: what the loader orders is enqueued, and counts as held at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch

from ....ipc.messages import (
    ComputeFromLoader,
    CopiesDone,
    Copy,
    Filled,
    HeldFromLoader,
    Message,
    Released,
    ResidentTable,
)
from ...checkpoint.survey import SlotTensor, Survey
from ..experts.holdings import Computed, Holdings, LayerEnded, LayerEntered, LayerRoutesKnown
from ..experts.residency import IDLE_MS, FeedCounts, Residency
from ..experts.routing import DeferredRoutes
from ..experts.slots import ExpertWeights, SlotViews
from .copy_scheduler import CopyScheduler
from .groups import SlotMatrix

WATCHING_MS = 1
"""Between two looks at copies under way, while nothing else happens."""


class DeviceSlotViews(SlotViews):
    """Views for kernels that are launched next: asking for an expert makes them wait for its copy."""

    def __init__(self, memory: torch.Tensor, survey: Survey, traffic: CopyScheduler) -> None:
        super().__init__(memory, survey)
        self._traffic = traffic

    def weights(self, slot: int, layer: int, expert: int) -> ExpertWeights:
        self._traffic.read(slot)
        return super().weights(slot, layer, expert)

    @property
    def dtype(self) -> torch.dtype:
        """Of the experts."""
        return getattr(torch, self._tensors[0].dtype)

    def matrices(self, transposed: bool) -> dict[str, SlotMatrix]:
        """By name, as a grouped product takes them; empty if experts are of several kinds, or lie in several ways."""
        if not self._uniform:
            return {}
        found = dict(zip((tensor.name for tensor in self._tensors), self._positions[0][0], strict=True))
        return {
            tensor.name: self._matrix(tensor, found, transposed) for tensor in self._tensors if len(tensor.shape) == 2
        }

    def _matrix(self, tensor: SlotTensor, found: dict[str, int], transposed: bool) -> SlotMatrix:
        kind: torch.dtype = getattr(torch, tensor.dtype)
        bias = found.get(f"{tensor.name}_bias", -kind.itemsize)
        places = (self._stride_bytes, found[tensor.name], bias)
        stride, start, bias_start = (place // kind.itemsize for place in places)
        rows, columns = tensor.shape
        return SlotMatrix(self._memory.view(kind), stride, start, (rows, columns), transposed, bias_start)


class DeviceResidency(Residency):
    """As on a CPU, but for what the messages mean: `Copy` is enqueued, `Released` leaves an event behind."""

    def __init__(
        self,
        traffic: CopyScheduler,
        holdings: Holdings,
        views: DeviceSlotViews,
        send: Callable[[Message], None],
        receive: Callable[[], list[ComputeFromLoader]],
        wait: Callable[[], list[ComputeFromLoader]],
        clock_ns: Callable[[], int],
    ) -> None:
        super().__init__(holdings, views, self._tell, self._look, self._enqueue_after(wait), clock_ns)
        self._traffic, self._say, self._listen = traffic, send, receive
        self.views = views
        self._uncounted: list[tuple[int, DeferredRoutes]] = []
        """Layers that were entered, and the routes that they took."""

    @property
    def counts(self) -> FeedCounts:
        self._count()
        return super().counts

    @property
    def counters(self) -> dict[str, int | float]:
        return {**super().counters, **self._traffic.counters}

    @property
    def ready(self) -> int:
        """How many experts of the layer that was begun can be launched without waiting for the loader."""
        return len(self._runs)

    def begin(self, layer: int, experts: list[int]) -> None:
        """What is there goes first: a kernel that waits for its copy holds up all behind it."""
        self._count()
        super().begin(layer, experts)
        self._runs.sort(key=lambda run: not self._traffic.is_filled(run[1]))

    def enter(self, layer: int) -> list[int] | None:
        """The slots of all experts of a layer that begins, which kernels may read until `leave`; None if one is
        missing."""
        for message in self._receive():
            self.receive(message)
        self._layer = layer
        slots = [slot for _, slot in self._perform(self._holdings.handle(LayerEntered(self._step, layer)))]
        for slot in slots:
            self._traffic.read(slot)
        return slots or None

    def leave(self, routes: DeferredRoutes) -> None:
        """All that reads the slots of the layer that was entered is launched; what it chose is counted in time."""
        self._uncounted.append((self._layer, routes))
        self._perform(self._holdings.handle(LayerEnded()))

    def is_whole(self, layer: int) -> bool:
        """Whether all experts of a layer are held now."""
        return self._holdings.is_whole(layer)

    def waves(self) -> Iterator[list[tuple[int, int]]]:
        """(expert, slot) of the layer that was begun, in lots that are launched together: what is there, then each
        expert as its copy comes. Their slots may be read until the next lot is asked for."""
        lots = self._lots()
        while True:
            for lot in lots:
                for _, slot in lot:
                    self._traffic.read(slot)
                yield lot
                self._runs += self._perform(self._holdings.handle(Computed([expert for expert, _ in lot])))
                self._runs += self._on_event(self._receive())
            if self._holdings.layer_done:
                break
            self._runs += [] if self._runs else self._await_arrivals()
            lots = self._lots()
        self._perform(self._holdings.handle(LayerEnded()))

    def _lots(self) -> list[list[tuple[int, int]]]:
        """A kernel waits for the last copy of its lot: so those on their way are lots of their own."""
        runs, self._runs = self._runs, []
        there = [run for run in runs if self._traffic.is_filled(run[1])]
        return [*([there] if there else []), *([run] for run in runs if run not in there)]

    def _count(self) -> None:
        """Once routes are read back, it is known which experts were there when they were wanted."""
        for layer, routes in self._uncounted:
            self._holdings.handle(LayerRoutesKnown(layer, np.unique(routes()).tolist()))
        self._uncounted.clear()

    def receive(self, message: ComputeFromLoader) -> None:
        super().receive(self._enqueue(message))

    def poll(self) -> int:
        self.report()
        return WATCHING_MS if self._traffic.under_way else IDLE_MS

    def report(self) -> None:
        """Tell the loader which copies have ended."""
        if numbers := self._traffic.finished():
            self._say(CopiesDone(numbers))

    def _tell(self, message: Message) -> None:
        if isinstance(message, Released):
            self._part_with(message.slots)
        elif isinstance(message, ResidentTable):
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
        return Filled(message.slot, message.layer, message.expert, message.cause)

"""Residency over a device's slots: a copy that the loader orders is enqueued, and its expert counts as held at once."""

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
from .grouped_product import SlotMatrix

PENDING_MS = 1
"""Time between two checks of pending copies while the process is idle otherwise."""


class DeviceSlotViews(SlotViews):
    """Views for kernels that are launched next: asking for an expert makes them wait for its copy."""

    def __init__(self, memory: torch.Tensor, survey: Survey, copies: CopyScheduler) -> None:
        super().__init__(memory, survey)
        self._copies = copies

    def weights(self, slot: int, layer: int, expert: int) -> ExpertWeights:
        self._copies.read(slot)
        return super().weights(slot, layer, expert)

    def matrices(self, transposed: bool) -> dict[str, SlotMatrix]:
        """Return the matrices of a grouped product, by name; none if experts differ in layout, or are packed."""
        if not self._uniform or self._packed:
            return {}
        positions = dict(zip((tensor.name for tensor in self._tensors), self._positions[0][0], strict=True))
        matrices = [tensor for tensor in self._tensors if len(tensor.shape) == 2]
        return {tensor.name: self._matrix(tensor, positions, transposed) for tensor in matrices}

    def _matrix(self, tensor: SlotTensor, positions: dict[str, int], transposed: bool) -> SlotMatrix:
        dtype: torch.dtype = getattr(torch, tensor.dtype)
        bias = positions.get(f"{tensor.name}_bias", -dtype.itemsize)
        offsets = (self._stride_bytes, positions[tensor.name], bias)
        stride, start, bias_start = (offset // dtype.itemsize for offset in offsets)
        rows, columns = tensor.shape
        return SlotMatrix(self._memory.view(dtype), stride, start, (rows, columns), transposed, bias_start)


class DeviceResidency(Residency):
    """Residency whose slots are on a device: `Copy` enqueues a copy, `Released` records an event."""

    def __init__(
        self,
        copies: CopyScheduler,
        holdings: Holdings,
        views: DeviceSlotViews,
        send: Callable[[Message], None],
        receive: Callable[[], list[ComputeFromLoader]],
        wait: Callable[[], list[ComputeFromLoader]],
        clock_ns: Callable[[], int],
    ) -> None:
        super().__init__(holdings, views, self._send_in_order, self._receive_copies, self._wait_copies(wait), clock_ns)
        self._copies, self._send_to_loader, self._receive_from_loader = copies, send, receive
        self.views = views
        self._uncounted: list[tuple[int, DeferredRoutes]] = []
        """Layers that were entered, and their routes."""

    @property
    def counts(self) -> FeedCounts:
        self._count_hits()
        return super().counts

    @property
    def counters(self) -> dict[str, int | float]:
        return {**super().counters, **self._copies.counters}

    @property
    def ready_count(self) -> int:
        """Number of experts of the current layer that can be launched without waiting for the loader."""
        return len(self._runs)

    def begin(self, layer: int, experts: list[int]) -> None:
        """Begin a layer; experts whose copies are done come first, since a waiting kernel blocks all behind it."""
        self._count_hits()
        super().begin(layer, experts)
        self._runs.sort(key=lambda run: not self._copies.is_filled(run[1]))

    def enter(self, layer: int) -> list[int] | None:
        """Begin a layer before its routes are known: return the slots of all its experts, None if one is missing.

        Kernels may read the slots until `leave`.
        """
        for message in self._receive():
            self.receive(message)
        self._layer = layer
        slots = [slot for _, slot in self._perform(self._holdings.handle(LayerEntered(self._step, layer)))]
        for slot in slots:
            self._copies.read(slot)
        return slots or None

    def leave(self, routes: DeferredRoutes) -> None:
        """End the layer that was entered, once all kernels that read its slots are launched.

        Its hits are counted when `routes` are read back.
        """
        self._uncounted.append((self._layer, routes))
        self._perform(self._holdings.handle(LayerEnded()))

    def is_resident(self, layer: int) -> bool:
        """Return whether all experts of a layer are held now."""
        return self._holdings.is_resident(layer)

    def waves(self) -> Iterator[list[tuple[int, int]]]:
        """Yield (expert, slot) of the current layer in waves that are launched together.

        The first wave holds the experts whose copies are done; each other expert is a wave of its own. Kernels may
        read the slots of a wave until the next is asked for.
        """
        waves = self._next_waves()
        while True:
            for wave in waves:
                for _, slot in wave:
                    self._copies.read(slot)
                yield wave
                self._runs += self._perform(self._holdings.handle(Computed([expert for expert, _ in wave])))
                self._runs += self._on_messages(self._receive())
            if self._holdings.layer_done:
                break
            self._runs += [] if self._runs else self._await_arrivals()
            waves = self._next_waves()
        self._perform(self._holdings.handle(LayerEnded()))

    def _next_waves(self) -> list[list[tuple[int, int]]]:
        """Split the runs: a kernel waits for the last copy of its wave, so each unfinished copy gets its own wave."""
        runs, self._runs = self._runs, []
        filled = [run for run in runs if self._copies.is_filled(run[1])]
        return [*([filled] if filled else []), *([run] for run in runs if run not in filled)]

    def _count_hits(self) -> None:
        """Count the hits of layers that were entered: their routes can be read back by now."""
        for layer, routes in self._uncounted:
            self._holdings.handle(LayerRoutesKnown(layer, np.unique(routes()).tolist()))
        self._uncounted.clear()

    def receive(self, message: ComputeFromLoader) -> None:
        super().receive(self._enqueue(message))

    def poll(self) -> int:
        self.report()
        return PENDING_MS if self._copies.has_pending else IDLE_MS

    def report(self) -> None:
        """Tell the loader which copies have ended."""
        if numbers := self._copies.take_finished():
            self._send_to_loader(CopiesDone(numbers))

    def _send_in_order(self, message: Message) -> None:
        """Send a message after the reports that it implies."""
        if isinstance(message, Released):
            self._release(message.slots)
        elif isinstance(message, ResidentTable):
            # A new loader knows of no copy from its host places: none may be pending when it receives the table.
            self._copies.wait()
            self._copies.take_finished()
        self._send_to_loader(message)

    def _release(self, slots: list[int]) -> None:
        """Release slots after their copies: to the loader a slot is filling until the copy's end is reported."""
        if self._copies.is_pending(set(slots)):
            self._copies.wait(slots)
            self.report()
        self._copies.release(slots)

    def _receive_copies(self) -> list[HeldFromLoader]:
        messages = [self._enqueue(message) for message in self._receive_from_loader()]
        self.report()
        return messages

    def _wait_copies(self, wait: Callable[[], list[ComputeFromLoader]]) -> Callable[[], list[HeldFromLoader]]:
        return lambda: [self._enqueue(message) for message in wait()]

    def _enqueue(self, message: ComputeFromLoader) -> HeldFromLoader:
        """Enqueue an ordered copy and return it as `Filled`; return other messages unchanged."""
        if not isinstance(message, Copy):
            return message
        self._copies.copy(message)
        return Filled(message.slot, message.layer, message.expert, message.cause)

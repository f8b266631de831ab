"""Copies into slots and kernels that read them, ordered by events alone: the host waits for neither (I3).

A slot's life: a copy fills it, kernels read it, compute gives it back, a copy fills it anew. Every arrow of that is one
event that a stream waits for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable
from typing import NamedTuple

from torch import Tensor

from ....ipc.messages import Copy
from .base import Device, DeviceEvent, Stream


class _UnderWay(NamedTuple):
    """A copy that was enqueued, and nobody was told yet that it is done."""

    number: int
    slot: int
    done: DeviceEvent


class CopyScheduler:
    """The slots of a device, `memory` uint8 [slots * stride], filled from the host store, uint8 [places * stride].

    `filled_bytes(expert)` of a place are copied, from its start.
    """

    def __init__(
        self, device: Device, memory: Tensor, store: Tensor, stride_bytes: int, filled_bytes: Callable[[int], int]
    ) -> None:
        self._device, self._memory, self._store = device, memory, store
        self._stride_bytes, self._filled_bytes = stride_bytes, filled_bytes
        self._filled: dict[int, DeviceEvent] = {}
        """Of slots whose copy no kernel has waited for yet."""
        self._used: dict[int, DeviceEvent] = {}
        """Of slots that were given back: after the kernels that read them."""
        self._lanes: tuple[deque[_UnderWay], deque[_UnderWay]] = (deque(), deque())
        """Copies under way in the two streams, each in its order."""
        self._copied_bytes = self._pageable_bytes = 0

    @property
    def counters(self) -> dict[str, int | float]:
        """Bytes that copies were enqueued for, in all and from memory that could not be pinned."""
        return {"copied_bytes": self._copied_bytes, "pageable_bytes": self._pageable_bytes}

    @property
    def under_way(self) -> bool:
        """Whether copies are under way that nobody was told the end of."""
        return any(self._lanes)

    def is_under_way(self, slots: Collection[int]) -> bool:
        """Whether such a copy goes into one of these slots."""
        return any(copy.slot in slots for lane in self._lanes for copy in lane)

    def copy(self, order: Copy) -> None:
        """Enqueue a copy into a slot that was given back, behind the kernels that read it before."""
        stream = self._device.urgent if order.urgent else self._device.copies
        self._await_kernels(stream, order.slot)
        count = self._filled_bytes(order.expert)
        stream.copy(self._part(self._memory, order.slot, count), self._part(self._store, order.place, count))
        self._filled[order.slot] = stream.record()
        self._lanes[order.urgent].append(_UnderWay(order.number, order.slot, self._filled[order.slot]))
        self._copied_bytes += count
        self._pageable_bytes += 0 if self._device.pinned else count

    def read(self, slot: int) -> None:
        """Kernels that are launched from now on read this slot: they wait for its copy."""
        filled = self._filled.pop(slot, None)
        if filled is not None:
            self._await_copy(filled)

    def release(self, slots: Iterable[int]) -> None:
        """No kernel that is launched from now on reads these slots; no copy into them is under way."""
        used = self._device.kernels.record()
        self._used.update(dict.fromkeys(slots, used))

    def is_filled(self, slot: int) -> bool:
        """Whether kernels that read the slot would not wait."""
        filled = self._filled.get(slot)
        return filled is None or filled.done()

    def finished(self) -> list[int]:
        """Numbers of the copies that have ended since this was last asked: their host places may be overwritten."""
        return [number for lane in self._lanes for number in _ended(lane)]

    def finish(self, slots: Collection[int] | None = None) -> None:
        """The host waits for the copies under way, or those into `slots`."""
        for lane in self._lanes:
            for copy in lane:
                if slots is None or copy.slot in slots:
                    copy.done.wait()

    def _await_kernels(self, stream: Stream, slot: int) -> None:
        used = self._used.pop(slot, None)
        if used is not None:
            stream.wait(used)

    def _await_copy(self, filled: DeviceEvent) -> None:
        self._device.kernels.wait(filled)

    def _part(self, memory: Tensor, number: int, count_bytes: int) -> Tensor:
        start = number * self._stride_bytes
        return memory[start : start + count_bytes]


def _ended(lane: deque[_UnderWay]) -> list[int]:
    numbers: list[int] = []
    while lane and lane[0].done.done():
        numbers.append(lane.popleft().number)
    return numbers

"""Orders copies into slots and kernels that read them by events alone: the host waits for neither (I3).

A slot's life: a copy fills it, kernels read it, compute releases it, a copy fills it again. One event orders each of
these transitions.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable
from typing import NamedTuple

from torch import Tensor

from ....ipc.messages import Copy
from .base import Device, DeviceEvent, Stream


class _PendingCopy(NamedTuple):
    """An enqueued copy whose end has not been reported yet."""

    number: int
    slot: int
    done: DeviceEvent


class CopyScheduler:
    """The slots of a device, `memory` uint8 [slots * stride], filled from the host store, uint8 [places * stride].

    Each copy takes the first `filled_bytes(layer, expert)` bytes of a place.
    """

    def __init__(
        self, device: Device, memory: Tensor, store: Tensor, stride_bytes: int, filled_bytes: Callable[[int, int], int]
    ) -> None:
        self._device, self._memory, self._store = device, memory, store
        self._stride_bytes, self._filled_bytes = stride_bytes, filled_bytes
        self._filled: dict[int, DeviceEvent] = {}
        """Slot → end of its copy, until a kernel has waited for it."""
        self._released: dict[int, DeviceEvent] = {}
        """Released slot → end of the kernels that read it."""
        self._lanes: tuple[deque[_PendingCopy], deque[_PendingCopy]] = (deque(), deque())
        """Pending copies of the two streams, each in its order."""
        self._copied_bytes = self._pageable_bytes = 0

    @property
    def counters(self) -> dict[str, int | float]:
        """Bytes of all enqueued copies, and bytes of those from memory that is not pinned."""
        return {"copied_bytes": self._copied_bytes, "pageable_bytes": self._pageable_bytes}

    @property
    def has_pending(self) -> bool:
        """Return whether the end of any copy is still unreported."""
        return any(self._lanes)

    def is_pending(self, slots: Collection[int]) -> bool:
        """Return whether the end of a copy into one of these slots is still unreported."""
        return any(copy.slot in slots for lane in self._lanes for copy in lane)

    def copy(self, order: Copy) -> None:
        """Enqueue a copy into a released slot, behind the kernels that read it before."""
        stream = self._device.urgent if order.urgent else self._device.copies
        self._await_kernels(stream, order.slot)
        count = self._filled_bytes(order.layer, order.expert)
        stream.copy(self._part(self._memory, order.slot, count), self._part(self._store, order.place, count))
        self._filled[order.slot] = stream.record()
        self._lanes[order.urgent].append(_PendingCopy(order.number, order.slot, self._filled[order.slot]))
        self._copied_bytes += count
        self._pageable_bytes += 0 if self._device.pinned else count

    def read(self, slot: int) -> None:
        """Make kernels that are launched from now on wait for the slot's copy."""
        filled = self._filled.pop(slot, None)
        if filled is not None:
            self._await_copy(filled)

    def release(self, slots: Iterable[int]) -> None:
        """Release slots that no later kernel reads and that no pending copy fills."""
        released = self._device.kernels.record()
        self._released.update(dict.fromkeys(slots, released))

    def is_filled(self, slot: int) -> bool:
        """Return whether kernels that read the slot would not wait."""
        filled = self._filled.get(slot)
        return filled is None or filled.done()

    def take_finished(self) -> list[int]:
        """Return the numbers of copies that ended since the last call: their host places may be overwritten."""
        return [number for lane in self._lanes for number in _take_finished(lane)]

    def wait(self, slots: Collection[int] | None = None) -> None:
        """Block the host until all pending copies, or those into `slots`, are done."""
        for lane in self._lanes:
            for copy in lane:
                if slots is None or copy.slot in slots:
                    copy.done.wait()

    def _await_kernels(self, stream: Stream, slot: int) -> None:
        released = self._released.pop(slot, None)
        if released is not None:
            stream.wait(released)

    def _await_copy(self, filled: DeviceEvent) -> None:
        self._device.kernels.wait(filled)

    def _part(self, memory: Tensor, number: int, count_bytes: int) -> Tensor:
        start = number * self._stride_bytes
        return memory[start : start + count_bytes]


def _take_finished(lane: deque[_PendingCopy]) -> list[int]:
    numbers: list[int] = []
    while lane and lane[0].done.done():
        numbers.append(lane.popleft().number)
    return numbers

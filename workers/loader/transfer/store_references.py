"""Source of experts whose slots refer to the host store: a transfer takes its time on the link and copies nothing."""

from __future__ import annotations

import threading

import numpy as np

from ....ipc.shared.slot_references import SlotReferences
from ...checkpoint.layout import filled_bytes
from ...checkpoint.survey import Survey
from .expert_sources import Chunk
from .files import CHUNK_BYTES, BounceBuffer
from .link import EmulatedLink


class _Arrival:
    """One expert on the link. Its slot shows it once the last chunk has arrived."""

    def __init__(self, references: SlotReferences, slot: int, key: int, chunks: int) -> None:
        self._references, self._slot, self._key, self._left = references, slot, key, chunks
        self._lock = threading.Lock()

    def take_chunk(self) -> None:
        """Count a chunk that has arrived. Called from reader threads."""
        with self._lock:
            self._left -= 1
            if not self._left:
                self._references.set(self._slot, self._key)


class StoreReferences:
    """Makes slots refer to experts of the host store, each after its time on the link."""

    def __init__(self, survey: Survey, link: EmulatedLink) -> None:
        self._survey, self._link = survey, link

    def chunks(self, memory: np.ndarray, base_bytes: int, layer: int, expert: int) -> list[Chunk]:
        """Return chunks that only wait. The slot in `memory`, uint8 [slots * REFERENCE_BYTES], shows nothing till then.

        `base_bytes` is the place that a slot of copied bytes would have.
        """
        references, slot = SlotReferences(memory), base_bytes // self._survey.stride_bytes
        references.clear(slot)
        filled = filled_bytes(self._survey, layer, expert)
        starts = range(0, filled, CHUNK_BYTES)
        arrival = _Arrival(references, slot, layer * self._survey.experts + expert, len(starts))
        ordered_ns = self._link.clock_ns()
        return [self._wait(arrival, min(CHUNK_BYTES, filled - at), ordered_ns, at == 0) for at in starts]

    def close(self) -> None:
        """Do nothing: the store belongs to the process."""

    def _wait(self, arrival: _Arrival, count_bytes: int, ordered_ns: int, opens: bool) -> Chunk:
        def wait(bounce: BounceBuffer) -> None:
            self._link.delay(count_bytes, ordered_ns, opens)
            arrival.take_chunk()

        return wait

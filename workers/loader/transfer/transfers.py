"""Reader threads that load experts into slots, over one queue of chunks ordered by urgency: no miss waits long (R6)."""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Callable

import msgspec
import numpy as np

from ....errors import CheckpointError, EngineError, ExpertFlowError
from ....ipc.messages import NO_CAUSE, Cause
from .expert_sources import Chunk, ExpertSource
from .files import BounceBuffer


class Transfer(msgspec.Struct):
    """One expert on its way into a slot."""

    slot: int
    layer: int
    expert: int
    left: int
    """Chunks that have not ended."""
    cause: Cause = NO_CAUSE
    ordered_ns: int = 0
    started_ns: int = 0
    ended_ns: int = 0
    error: OSError | CheckpointError | None = None
    """Failure of a chunk. A CheckpointError means that the file has changed since the survey."""


def failure_of(transfer: Transfer, folder: str) -> ExpertFlowError | None:
    """Return the error of a transfer from the checkpoint in `folder`, None if it did not fail.

    A CheckpointError (the file has changed) lasts. An EngineError (the disk or network gave an error) may pass: a
    loader that is started again may read the same bytes.
    """
    if transfer.error is None or isinstance(transfer.error, CheckpointError):
        return transfer.error
    what = f"cannot read expert {transfer.expert} of MoE layer {transfer.layer}: {transfer.error}"
    return EngineError(what, str(transfer.error.filename or folder), "Check the disk and the checkpoint's files")


class TransferEngine:
    """Reader threads that fill slots of `memory` (uint8) chunk by chunk, urgent chunks first.

    Owns `source`: `close` closes it. A reader thread calls `done(transfer)` once the last chunk of a transfer has
    ended, well or not.
    """

    def __init__(
        self,
        source: ExpertSource,
        memory: np.ndarray,
        stride_bytes: int,
        threads: int,
        done: Callable[[Transfer], None],
        clock_ns: Callable[[], int],
    ) -> None:
        self._source, self._memory, self._stride_bytes = source, memory, stride_bytes
        self._done, self._clock_ns = done, clock_ns
        self._queue: list[tuple[int, int, Transfer, Chunk]] = []
        self._order = itertools.count()
        self._state = threading.Condition()
        self._closed = False
        self._threads = [threading.Thread(target=self._work, name=f"reader-{n}", daemon=True) for n in range(threads)]
        for thread in self._threads:
            thread.start()

    def start(self, slot: int, layer: int, expert: int, urgent: bool, cause: Cause = NO_CAUSE) -> None:
        """Begin to fill `slot`; urgent transfers overtake the chunks of others. The transfer carries `cause`."""
        chunks = self._source.chunks(self._memory, slot * self._stride_bytes, layer, expert)
        transfer = Transfer(slot, layer, expert, len(chunks), cause, self._clock_ns())
        with self._state:
            for chunk in chunks:
                heapq.heappush(self._queue, (0 if urgent else 1, next(self._order), transfer, chunk))
            self._state.notify(len(chunks))

    def promote(self, slot: int) -> None:
        """Make the transfer into `slot` urgent (a miss waits for it)."""
        with self._state:
            self._queue = [(0 if entry[2].slot == slot else entry[0], *entry[1:]) for entry in self._queue]
            heapq.heapify(self._queue)

    def close(self) -> None:
        """Let the chunks in progress end and drop the rest."""
        with self._state:
            self._closed = True
            self._queue.clear()
            self._state.notify_all()
        for thread in self._threads:
            thread.join()
        self._source.close()

    def _work(self) -> None:
        bounce = BounceBuffer()
        while (taken := self._take()) is not None:
            transfer, chunk = taken
            try:
                chunk(bounce)
            except (OSError, CheckpointError) as error:
                transfer.error = error
            except Exception as error:  # noqa: BLE001 - a thread that died would leave a miss waiting for ever
                transfer.error = OSError(f"{type(error).__name__}: {error}")
            self._finish(transfer)

    def _take(self) -> tuple[Transfer, Chunk] | None:
        with self._state:
            while not self._queue and not self._closed:
                self._state.wait()
            if self._closed:
                return None
            _, _, transfer, chunk = heapq.heappop(self._queue)
            transfer.started_ns = transfer.started_ns or self._clock_ns()
            return transfer, chunk

    def _finish(self, transfer: Transfer) -> None:
        with self._state:
            transfer.left -= 1
            last = transfer.left == 0
        if last:
            transfer.ended_ns = self._clock_ns()
            self._done(transfer)

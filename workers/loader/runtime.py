"""The loader without sockets: the ledger, the fills that carry out its actions, and the notes that explain them.

The loader process (shell.py) and the engine in one process (runtime/verify/local_runtime.py) are made of it.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable

import numpy as np

from ...ipc.messages import CacheHeat, ComputeFromLoader, CopiesDone, Copy, Filled
from ..checkpoint.layout import layer_bytes
from ..checkpoint.survey import Survey
from .drawing import Drawing
from .events import ComputeJoined, FillDone, LedgerAction, LedgerEvent, PromoteFill, StartFill
from .fills import Slots, open_fills
from .ledger import Ledger
from .ledger_log import LedgerLog
from .reads import Reads
from .slow_reads import SlowReads
from .statistics import LedgerStatistics
from .transfer.expert_sources import ExpertSource
from .transfer.transfers import Transfer, TransferEngine, failure_of


class LoaderRuntime:
    """One ledger and its reader threads. All methods belong to one thread; none waits but `wait_for_transfer`."""

    def __init__(
        self,
        survey: Survey,
        ledger: Ledger,
        slots: Slots,
        readers: int,
        send: Callable[[ComputeFromLoader], None],
        *,
        wake: Callable[[], None] | None = None,
        log: LedgerLog | None = None,
        drawing: Drawing | None = None,
        reads: Reads | None = None,
    ) -> None:
        """Start `readers` threads. `send` sends a message to compute.

        A reader thread calls `wake` after each transfer: `collect` then has something to do. Raises CheckpointError if
        a file is gone or changed since the survey.
        """
        self.ledger = ledger
        self._survey, self._readers, self._send, self._wake = survey, readers, send, wake
        self._log, self._drawing = log or LedgerLog(None), drawing
        self._done: queue.SimpleQueue[Transfer] = queue.SimpleQueue()
        self._ordered_bytes = self._read_bytes = 0
        self._layer_bytes = layer_bytes(survey)
        self._slow = SlowReads()
        self._reads = reads or Reads()
        self._fills = open_fills(survey, slots, self._open_engine, self._send_copy, self._reads.open)

    def _open_engine(self, source: ExpertSource, memory: np.ndarray) -> TransferEngine:
        stride_bytes = self._survey.stride_bytes
        return TransferEngine(source, memory, stride_bytes, self._readers, self._on_transfer_done, time.monotonic_ns)

    def handle(self, event: LedgerEvent | CopiesDone) -> None:
        """Take one event, and perform all that follows from it."""
        if isinstance(event, CopiesDone):
            if self._drawing is not None:
                self._drawing.on_copies_done(event.numbers)
            self._complete(self._fills.on_copied(event.numbers))
            return
        if isinstance(event, ComputeJoined):
            if self._drawing is not None:
                self._drawing.on_compute_joined()
            self._fills.on_compute_joined()
        self._decide(event)

    def collect(self) -> None:
        """Take the transfers that have ended. Raises CheckpointError or EngineError if one failed."""
        while not self._done.empty():
            self._on_transfer(self._done.get())

    def wait_for_transfer(self) -> None:
        """Wait until a transfer ends, and take it. Raises as `collect`."""
        self._on_transfer(self._done.get())

    def mark(self) -> LedgerStatistics:
        """Return the ledger's statistics, and write them to its log."""
        statistics = self.ledger.statistics()
        self._log.mark(statistics)
        return statistics

    def counters(self) -> dict[str, int | float]:
        """Return the counters besides the ledger's.

        `read_bytes` have been read by the reader threads; `bytes` have been loaded into slots, or ordered on a device.
        """
        loaded_bytes = self._ordered_bytes if self._fills.announced else self._read_bytes
        counts = {"read_bytes": self._read_bytes, "bytes": loaded_bytes}
        return {**counts, **self._reads.faults.counters(), **self._fills.counters()}

    def heat(self) -> CacheHeat:
        """Return the state of every expert, for watchers."""
        residence, use = self.ledger.residence(), self.ledger.use.scaled()
        return CacheHeat(
            time_ns=time.monotonic_ns(),
            layers=self._survey.layers,
            experts=self._survey.experts,
            residence=residence.tobytes(),
            use=use.tobytes(),
        )

    def close(self) -> None:
        """Let the reads in progress end, drop the rest, end the reader threads, and close the log."""
        self._fills.close()
        self._log.close()

    def _decide(self, event: LedgerEvent) -> None:
        """Perform what compute may wait for before prefetches are chosen, which takes longer."""
        drawing = self._drawing if self._drawing is not None and self._drawing.is_on() else None
        self.ledger.explain(drawing is not None)
        self._log.write(event)
        self._perform(self.ledger.react(event))
        self._perform(self.ledger.prefetch())
        if drawing is not None:
            drawing.draw_notes(self.ledger.explanations())

    def _perform(self, actions: list[LedgerAction]) -> None:
        for action in actions:
            match action:
                case StartFill():
                    self._ordered_bytes += self._bytes_of(action.layer, action.expert)
                    self._fills.start(action.slot, action.layer, action.expert, action.urgent, action.cause)
                case PromoteFill():
                    self._fills.promote(action.slot)
                case Filled() if self._fills.announced:
                    pass
                case _:
                    self._send(action)

    def _bytes_of(self, layer: int, expert: int) -> int:
        return self._layer_bytes[layer][self._survey.kind_of(expert)]

    def _send_copy(self, copy: Copy) -> None:
        if self._drawing is not None and self._drawing.is_on():
            self._drawing.on_copy_sent(copy)
        self._send(copy)

    def _on_transfer_done(self, transfer: Transfer) -> None:
        """Hand the transfer over to the thread of the loader. Called from a reader thread."""
        self._done.put(transfer)
        if self._wake is not None:
            self._wake()

    def _on_transfer(self, transfer: Transfer) -> None:
        if (failure := failure_of(transfer, self._survey.folder)) is not None:
            raise failure
        self._slow.watch(transfer, time.monotonic_ns())
        self._read_bytes += self._bytes_of(transfer.layer, transfer.expert)
        if self._drawing is not None and self._drawing.is_on():
            self._drawing.draw_transfer(transfer)
        self._complete(self._fills.on_read(transfer))

    def _complete(self, filled: list[FillDone]) -> None:
        for done in filled:
            self._decide(done)

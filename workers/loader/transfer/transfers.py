"""Moves experts into slots: reader threads over one urgency-ordered queue of chunks: a need never waits long (R6).

Sources behind one interface: the checkpoint's files (disk -> slot) and the shared host store (memory -> slot).
"""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Callable
from typing import Protocol

import msgspec
import numpy as np

from ....errors import CheckpointError, EngineError, ExpertFlowError
from ....ipc.messages import NO_CAUSE, Cause
from ...checkpoint.layout import ByteRun, ReadPlan, filled_bytes
from ...checkpoint.row_conversion import row_blocks
from ...checkpoint.survey import Piece, Survey
from .converting import PieceReader
from .files import CHUNK_BYTES, BounceBuffer, ByteRange, CheckpointFile, chunk_spans, join_spans
from .link import EmulatedLink

Chunk = Callable[[BounceBuffer], None]


class ExpertSource(Protocol):
    """Where experts come from."""

    def chunks(self, memory: np.ndarray, base_bytes: int, layer: int, expert: int) -> list[Chunk]:
        """The chunks that bring one expert to `base_bytes` of `memory`, to be run in any order."""
        ...

    def close(self) -> None: ...


class FileSource:
    """Experts from the checkpoint's files, converted on the way where the model asks for it."""

    def __init__(self, survey: Survey) -> None:
        """Raises CheckpointError if a file is gone or changed since the survey, or cannot be opened."""
        self._plan = ReadPlan(survey)
        self._guarded = survey.block_bytes > 1
        self._stamps = survey.stamps
        self._files: list[CheckpointFile] = []
        for path in survey.files:
            self._files.append(self._open(path))
        self._pieces = PieceReader(self._files, survey.pieces, survey.tensors)

    def _open(self, path: str) -> CheckpointFile:
        try:
            return CheckpointFile(path, self._guarded, self._stamps.get(path))
        except OSError as error:
            self.close()
            what = f"cannot be opened ({error.strerror})"
            raise CheckpointError(what, path, "It was there a moment ago: leave a model's files alone") from error
        except CheckpointError:
            self.close()
            raise

    @property
    def direct(self) -> bool:
        """Whether all files are read past the page cache."""
        return all(file.direct for file in self._files)

    def chunks(self, memory: np.ndarray, base_bytes: int, layer: int, expert: int) -> list[Chunk]:
        chunks: list[Chunk] = []
        spans: dict[int, list[ByteRange]] = {}
        for run in self._plan.runs(layer, expert):
            if run.piece is None:
                spans.setdefault(run.file, []).extend(chunk_spans(run, base_bytes, self._guarded))
            else:
                start = base_bytes + run.position_bytes
                target = memory[start : start + run.piece.count_bytes]
                chunks += [self._converted(target, run, run.piece, rows) for rows in row_blocks(run.piece, CHUNK_BYTES)]
        return chunks + [
            self._plain(memory, file, joined) for file, each in spans.items() for joined in join_spans(each)
        ]

    def close(self) -> None:
        for file in self._files:
            file.close()

    def _plain(self, memory: np.ndarray, file: int, spans: list[ByteRange]) -> Chunk:
        return self._checked((file,), lambda bounce: self._files[file].read_joined(memory, spans, bounce))

    def _converted(self, target: np.ndarray, run: ByteRun, piece: Piece, rows: range) -> Chunk:
        files = (run.file, run.scales_at[0]) if piece.scales else (run.file,)
        return self._checked(files, lambda bounce: self._pieces.fill(target, run, piece, rows, bounce))

    def _checked(self, files: tuple[int, ...], read: Chunk) -> Chunk:
        """Compare files with their stamps after a read, and after one that failed: a file cut off is named so."""

        def chunk(bounce: BounceBuffer) -> None:
            try:
                read(bounce)
            finally:
                for file in files:
                    self._files[file].check()

        return chunk


class StoreSource:
    """Experts from the host store: every expert of the model, laid out as in its slot."""

    def __init__(self, store: np.ndarray, survey: Survey, link: EmulatedLink | None = None) -> None:
        self._store, self._survey, self._link = store, survey, link

    def chunks(self, memory: np.ndarray, base_bytes: int, layer: int, expert: int) -> list[Chunk]:
        source = (layer * self._survey.experts + expert) * self._survey.stride_bytes
        filled = filled_bytes(self._survey, expert)
        return [
            self._copy(memory, base_bytes + at, source + at, min(CHUNK_BYTES, filled - at))
            for at in range(0, filled, CHUNK_BYTES)
        ]

    def close(self) -> None:
        """Nothing: the store belongs to the process."""

    def _copy(self, memory: np.ndarray, target: int, source: int, count: int) -> Chunk:
        def copy() -> None:
            np.copyto(memory[target : target + count], self._store[source : source + count])

        link = self._link
        return lambda bounce: copy() if link is None else link.carry(count, copy)


class Transfer(msgspec.Struct):
    """One expert on its way into a slot."""

    slot: int
    layer: int
    expert: int
    left: int
    cause: Cause = NO_CAUSE
    ordered_ns: int = 0
    started_ns: int = 0
    ended_ns: int = 0
    error: OSError | CheckpointError | None = None
    """A CheckpointError says that the file has changed since the survey."""


def failure_of(transfer: Transfer, folder: str) -> ExpertFlowError | None:
    """Return why a transfer from the checkpoint in `folder` failed, None if it did not.

    A CheckpointError (the file has changed) lasts. An EngineError (the disk or network gave an error) may pass: a
    loader that is started again may read the same bytes.
    """
    if transfer.error is None or isinstance(transfer.error, CheckpointError):
        return transfer.error
    what = f"cannot read expert {transfer.expert} of MoE layer {transfer.layer}: {transfer.error}"
    return EngineError(what, folder, "Check the disk and the checkpoint's files")


class TransferEngine:
    """Reader threads that fill slots chunk by chunk, urgent chunks first. Takes over `source`: closing closes it.

    `done(transfer)` is called from a reader thread once the last chunk of a transfer has ended, well or not.
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
        """Begin to fill `slot`; urgent transfers overtake the chunks of others. `cause` goes along."""
        chunks = self._source.chunks(self._memory, slot * self._stride_bytes, layer, expert)
        transfer = Transfer(slot, layer, expert, len(chunks), cause, self._clock_ns())
        with self._state:
            for chunk in chunks:
                heapq.heappush(self._queue, (0 if urgent else 1, next(self._order), transfer, chunk))
            self._state.notify(len(chunks))

    def promote(self, slot: int) -> None:
        """Make the transfer into `slot` urgent (a need waits for it)."""
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
            except Exception as error:  # noqa: BLE001 - a thread that died would leave its need waiting for ever
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

"""Sources of experts behind one interface: the checkpoint's files (disk -> slot), the host store (memory -> slot)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from ....errors import CheckpointError
from ...checkpoint.layout import ByteRun, ReadPlan, filled_bytes
from ...checkpoint.row_conversion import (
    Dequantiser,
    convert_rows,
    has_nan,
    make_dequantiser,
    row_blocks,
    scale_rows,
    unpack,
)
from ...checkpoint.survey import Piece, Scales, SlotTensor, Survey
from ...packed.coding import Coding, pack_input
from .expert_sums import ExpertSums
from .files import CHUNK_BYTES, BounceBuffer, ByteRange, CheckpointFile, chunk_spans, join_spans
from .link import EmulatedLink
from .read_checks import Chunk, ExpertCheck, ReadFaults, Recorder, retried


class ExpertSource(Protocol):
    """Source of experts."""

    def chunks(self, memory: np.ndarray, base_bytes: int, layer: int, expert: int) -> list[Chunk]:
        """Return the chunks that load one expert to `base_bytes` of `memory`, uint8 [bytes].

        They may run in any order.
        """
        ...

    def close(self) -> None: ...


class PieceReader:
    """Reads rows of pieces that need conversion (cast, transposed, dequantised) and converts them on the reader thread.

    Scales are read with the rows that need them. Those of all experts would fill gigabytes: MXFP4 has one for each 32
    weights.
    """

    def __init__(
        self,
        files: list[CheckpointFile],
        pieces: list[Piece],
        tensors: list[SlotTensor],
        recorder: Recorder | None = None,
    ) -> None:
        self._files, self._recorder = files, recorder
        self._dtypes = [tensor.dtype for tensor in tensors]
        self._names = [tensor.name for tensor in tensors]
        scaled = [piece for piece in pieces if piece.scales is not None]
        self._dequantisers: dict[tuple[int, int], Dequantiser] = {
            _piece_id(piece): make_dequantiser(piece, self._dtypes[piece.tensor]) for piece in scaled
        }

    def fill(self, target: np.ndarray, run: ByteRun, piece: Piece, rows: range, bounce: BounceBuffer) -> None:
        """Write `rows` of a piece to their place in `target`, uint8 [bytes]: the piece in its slot. Raises OSError."""
        dtype = self._dtypes[piece.tensor]
        if piece.coding is not None:
            self._unpack(target, run, piece, piece.coding, dtype)
            return
        if piece.input is not None:
            raw = self._view(run.file, run.offset_bytes, piece.source_bytes, bounce)
            self.refuse_nan(raw, piece.check, run.file, piece.tensor)
            self._require_equal(raw, run, piece)
            target[:] = np.ascontiguousarray(pack_input(piece.input, raw)).view(np.uint8).reshape(-1)
            return
        if piece.scales is None:
            raw = self._rows(run, piece, rows, bounce)
            self.refuse_nan(raw, piece.check, run.file, piece.tensor)
            convert_rows(raw, target, piece, rows, dtype)
            return
        scales = self._scales(run, piece.scales, rows, bounce)
        raw = self._rows(run, piece, rows, bounce)
        self._dequantisers[_piece_id(piece)].convert(raw, scales, target, piece, rows)

    def _unpack(self, target: np.ndarray, run: ByteRun, piece: Piece, coding: Coding, dtype: str) -> None:
        """Dequantise a packed matrix: all that it is stored as, its codes and scales among them, is read at once."""
        stored: list[np.ndarray] = []
        for (file, offset), (role, one) in zip(run.inputs_at, coding.inputs.items(), strict=True):
            stored.append(self._view(file, offset, one.count_bytes, BounceBuffer(one.count_bytes)))
            self.refuse_nan(stored[-1], coding.packing.scale_dtype if role == "scales" else "", file, piece.tensor)
        unpack(coding, stored, target, piece, dtype)

    def _require_equal(self, raw: np.ndarray, run: ByteRun, piece: Piece) -> None:
        """Raise CheckpointError if another stored tensor differs that a slot holds once."""
        for file, offset in run.inputs_at:
            other = self._view(file, offset, len(raw), BounceBuffer(len(raw)))
            if not np.array_equal(raw, other):
                what = f"the stored matrices of {self._names[piece.tensor]} of an expert have different ones"
                raise CheckpointError(what, self._files[file].path, "Use experts_in = dequantised")

    def refuse_nan(self, scales: np.ndarray, dtype: str, file: int, tensor: int) -> None:
        """Raise CheckpointError if a scale of a slot tensor, uint8 [bytes], is NaN; no `dtype`: these are no scales."""
        if dtype and has_nan(scales, dtype):
            what = f"the scales of {self._names[tensor]} of an expert hold a value that is no number (NaN)"
            raise CheckpointError(what, self._files[file].path, "Download the checkpoint again")

    def _rows(self, run: ByteRun, piece: Piece, rows: range, bounce: BounceBuffer) -> np.ndarray:
        row_bytes = piece.source_bytes // piece.source_shape[0]
        return self._view(run.file, run.offset_bytes + rows.start * row_bytes, len(rows) * row_bytes, bounce)

    def _scales(self, run: ByteRun, scales: Scales, rows: range, bounce: BounceBuffer) -> np.ndarray:
        needed = scale_rows(scales, rows)
        file, offset = run.scales_at
        return self._view(file, offset + needed.start * scales.row_bytes, len(needed) * scales.row_bytes, bounce).copy()

    def _view(self, file: int, offset_bytes: int, count_bytes: int, bounce: BounceBuffer) -> np.ndarray:
        room = bounce if count_bytes <= CHUNK_BYTES else BounceBuffer(count_bytes)
        view = self._files[file].view(offset_bytes, count_bytes, room)
        if self._recorder is not None:
            self._recorder.note_converted(file, offset_bytes, view)
        return view


def _piece_id(piece: Piece) -> tuple[int, int]:
    """Return what identifies a piece among those of an expert: its tensor and position."""
    return piece.tensor, piece.position_bytes


class FileSource:
    """Reads experts from the checkpoint's files, and converts them where the model asks for it."""

    def __init__(self, survey: Survey, faults: ReadFaults | None = None, recorder: Recorder | None = None) -> None:
        """Open all files. Raises CheckpointError if one is gone or changed since the survey, or cannot be opened.

        Failed reads are counted in `faults`; `recorder` notes what is read, for checksums.
        """
        self.recorder = recorder
        self._faults, self._sums = faults or ReadFaults(), ExpertSums([])
        self._experts = survey.experts
        self._plan = ReadPlan(survey)
        self._guarded = survey.block_bytes > 1
        self._stamps = survey.stamps
        self._files: list[CheckpointFile] = []
        for path in survey.files:
            self._files.append(self._open(path))
        self._pieces = PieceReader(self._files, survey.pieces, survey.tensors, recorder)

    def verify(self, sums: ExpertSums) -> None:
        """Compare every expert with its checksum from now on; a `recorder` is needed."""
        self._sums = sums

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
        """Return whether all files are read past the page cache."""
        return all(file.direct for file in self._files)

    def chunks(self, memory: np.ndarray, base_bytes: int, layer: int, expert: int) -> list[Chunk]:
        """Return chunks that read the expert's byte runs from the files into `memory`, uint8 [bytes]."""
        chunks: list[Chunk] = []
        spans: dict[int, list[ByteRange]] = {}
        for run in self._plan.runs(layer, expert):
            if run.piece is None:
                spans.setdefault(run.file, []).extend(chunk_spans(run, base_bytes, self._guarded))
            else:
                start = base_bytes + run.position_bytes
                target = memory[start : start + run.piece.count_bytes]
                chunks += [self._converted(target, run, run.piece, rows) for rows in row_blocks(run.piece, CHUNK_BYTES)]
        chunks += [self._plain(memory, file, joined) for file, parts in spans.items() for joined in join_spans(parts)]
        if self.recorder is None or not self._sums.sums:
            return chunks
        expected = self._sums.of(layer * self._experts + expert)
        return ExpertCheck(self.recorder, expected, self._faults, self._refusal(layer, expert)).watch(chunks)

    def close(self) -> None:
        for file in self._files:
            file.close()

    def _refusal(self, layer: int, expert: int) -> Callable[[int], CheckpointError]:
        """Return what makes the error of this expert's bytes in a file."""
        what = f"does not hold the bytes of expert {expert} of MoE layer {layer} that its checksum was made of"
        remedy = "Check disk and memory, and download the file again; the time of the file has not changed"
        return lambda file: CheckpointError(what, self._files[file].path, remedy)

    def _plain(self, memory: np.ndarray, file: int, spans: list[ByteRange]) -> Chunk:
        def read(bounce: BounceBuffer) -> None:
            self._files[file].read_joined(memory, spans, bounce)
            for span in spans:
                self._pieces.refuse_nan(memory[span.own], span.check, file, span.tensor)
                if self.recorder is not None:
                    self.recorder.note_plain(file, span.offset_bytes + span.lead_bytes, memory[span.own])

        return self._checked((file,), read)

    def _converted(self, target: np.ndarray, run: ByteRun, piece: Piece, rows: range) -> Chunk:
        return self._checked(run.files, lambda bounce: self._pieces.fill(target, run, piece, rows, bounce))

    def _checked(self, files: tuple[int, ...], read: Chunk) -> Chunk:
        """Return `read` with a second try, and with a check of the stamps after it.

        They are checked after a failure, too: a truncated file is named so.
        """

        def check() -> None:
            for file in files:
                self._files[file].check()

        again = retried(read, self._files[files[0]].path, self._faults, check)

        def chunk(bounce: BounceBuffer) -> None:
            try:
                again(bounce)
            finally:
                check()

        return chunk


class StoreSource:
    """Copies experts from the host store (uint8), which holds every expert, laid out as in its slot."""

    def __init__(self, store: np.ndarray, survey: Survey, link: EmulatedLink | None = None) -> None:
        self._store, self._survey, self._link = store, survey, link

    def chunks(self, memory: np.ndarray, base_bytes: int, layer: int, expert: int) -> list[Chunk]:
        """Return chunks that copy the expert from the host store into `memory`, uint8 [bytes]."""
        source = (layer * self._survey.experts + expert) * self._survey.stride_bytes
        filled = filled_bytes(self._survey, layer, expert)
        return [
            self._copy(memory, base_bytes + at, source + at, min(CHUNK_BYTES, filled - at), opens=at == 0)
            for at in range(0, filled, CHUNK_BYTES)
        ]

    def close(self) -> None:
        """Keep the store open: it belongs to the process."""

    def _copy(self, memory: np.ndarray, target: int, source: int, count: int, opens: bool) -> Chunk:
        def copy() -> None:
            np.copyto(memory[target : target + count], self._store[source : source + count])

        link = self._link
        return lambda bounce: copy() if link is None else link.carry(count, copy, opens)

"""Brings pieces that change on the way (cast, transposed, dequantised) into slots, some rows at a time."""

from __future__ import annotations

import numpy as np

from ...checkpoint.layout import ByteRun
from ...checkpoint.row_conversion import Dequantiser, convert_rows, make_dequantiser, scale_rows
from ...checkpoint.survey import Piece, Scales, SlotTensor
from .files import CHUNK_BYTES, BounceBuffer, CheckpointFile


class PieceReader:
    """Reads rows of pieces and converts them in the reading thread. Scales are read with the rows that need them:
    those of all experts would fill gigabytes (MXFP4 has one for each 32 weights).
    """

    def __init__(self, files: list[CheckpointFile], pieces: list[Piece], tensors: list[SlotTensor]) -> None:
        self._files = files
        self._dtypes = [tensor.dtype for tensor in tensors]
        scaled = [piece for piece in pieces if piece.scales is not None]
        self._dequantisers: dict[tuple[int, int], Dequantiser] = {
            _place(piece): make_dequantiser(piece, self._dtypes[piece.tensor]) for piece in scaled
        }

    def fill(self, target: np.ndarray, run: ByteRun, piece: Piece, rows: range, bounce: BounceBuffer) -> None:
        """Bring `rows` of a piece to their place in `target`, the bytes of its slot. Raises OSError."""
        dtype = self._dtypes[piece.tensor]
        if piece.scales is None:
            convert_rows(self._rows(run, piece, rows, bounce), target, piece, rows, dtype)
            return
        scales = self._scales(run, piece.scales, rows, bounce)
        raw = self._rows(run, piece, rows, bounce)
        self._dequantisers[_place(piece)].convert(raw, scales, target, piece, rows)

    def _rows(self, run: ByteRun, piece: Piece, rows: range, bounce: BounceBuffer) -> np.ndarray:
        row_bytes = piece.source_bytes // piece.source_shape[0]
        return self._view(run.file, run.offset_bytes + rows.start * row_bytes, len(rows) * row_bytes, bounce)

    def _scales(self, run: ByteRun, scales: Scales, rows: range, bounce: BounceBuffer) -> np.ndarray:
        own = scale_rows(scales, rows)
        file, offset = run.scales_at
        return self._view(file, offset + own.start * scales.row_bytes, len(own) * scales.row_bytes, bounce).copy()

    def _view(self, file: int, offset_bytes: int, count_bytes: int, bounce: BounceBuffer) -> np.ndarray:
        room = bounce if count_bytes <= CHUNK_BYTES else BounceBuffer(count_bytes)
        return self._files[file].view(offset_bytes, count_bytes, room)


def _place(piece: Piece) -> tuple[int, int]:
    """Which piece of an expert this is."""
    return piece.tensor, piece.position_bytes

"""Surveys of made-up files, so that tests choose every offset."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from expertflow.workers.checkpoint.headers import DTYPE_BYTES
from expertflow.workers.checkpoint.layout import place_regions
from expertflow.workers.checkpoint.survey import Piece, RowFacts, Survey
from expertflow.workers.loader.transfer.files import BLOCK_BYTES

SMALL_CHUNK_BYTES = 2 * BLOCK_BYTES
SIZES_BYTES = (40_000, 65_536, 8192 + 1)
"""Of the files in the fixture `sources`."""
Place = tuple[int, int]
"""File number, offset."""


def make_survey(
    files: Sequence[Path],
    pieces: Sequence[Sequence[int]],
    places: Sequence[Sequence[Place]],
    block_bytes: int,
    dtype: str = "bfloat16",
    stored: str = "",
) -> Survey:
    """A survey of one MoE layer.

    `pieces`: for each tensor the items in each of its pieces; `places`: for each expert the place of each piece.
    """
    item_bytes, stored = DTYPE_BYTES[dtype], stored or dtype
    shapes = {f"tensor{number}": [sum(own)] for number, own in enumerate(pieces)}
    tensors, stride_bytes = place_regions(shapes, dtype, block_bytes)
    return Survey(
        folder=".",
        model_type="made-up",
        architecture="",
        dtype=dtype,
        vocabulary=8,
        context=8,
        eos_ids=[],
        layers=1,
        experts=len(places),
        top_k=1,
        module_names=["layer"],
        skeleton_bytes=0,
        checkpoint_bytes=0,
        rows=RowFacts(kv_bytes_per_position=0),
        files=[str(file) for file in files],
        tensors=tensors,
        pieces=[
            Piece(
                tensor=number,
                position_bytes=sum(own[:place]) * item_bytes,
                count_bytes=items * item_bytes,
                source_bytes=items * DTYPE_BYTES[stored],
                source_dtype=stored,
                source_shape=[items],
                operation="copy" if stored == dtype else "cast",
            )
            for number, own in enumerate(pieces)
            for place, items in enumerate(own)
        ],
        places=np.array([places], dtype=np.int64).tobytes(),
        stride_bytes=stride_bytes,
        block_bytes=block_bytes,
    )


def write_random(folder: Path, *sizes_bytes: int) -> list[Path]:
    """Files of random bytes."""
    generator = np.random.default_rng(0)
    files = [folder / f"{number}.safetensors" for number in range(len(sizes_bytes))]
    for file, size in zip(files, sizes_bytes, strict=True):
        file.write_bytes(generator.bytes(size))
    return files


def reads_directly(folder: Path) -> bool:
    """Whether the file system takes O_DIRECT."""
    file = folder / "direct"
    file.write_bytes(b"x")
    try:
        os.close(os.open(file, os.O_RDONLY | os.O_DIRECT))
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return False
    finally:
        file.unlink()
    return True

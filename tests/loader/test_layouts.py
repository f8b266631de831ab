"""Whatever the layout of a checkpoint: the bytes of an expert arrive in its slot, and nowhere else."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
from expertflow.tests.loader.arenas import CANARY, make_arena
from expertflow.tests.loader.layouts import SIZES_BYTES, Place, make_survey
from expertflow.workers.checkpoint.layout import ReadPlan, tensor_positions
from expertflow.workers.checkpoint.survey import Survey
from expertflow.workers.loader.transfer.files import (
    BLOCK_BYTES,
    BounceBuffer,
    ByteRange,
    CheckpointFile,
    chunk_spans,
    join_spans,
)
from hypothesis import given, settings
from hypothesis import strategies as st


@st.composite
def layouts(draw: st.DrawFn) -> tuple[list[list[int]], list[Place], int]:
    """Pieces of each tensor, places of one expert's pieces, and the block.

    Some pieces follow each other in their file, or would if they were in the same one.
    """
    pieces = draw(st.lists(st.lists(st.integers(1, 9000), min_size=1, max_size=3), min_size=1, max_size=3))
    places: list[Place] = []
    behind = 0
    for items in (items for own in pieces for items in own):
        count = 2 * items
        fitting = [number for number, size in enumerate(SIZES_BYTES) if size >= count]
        file = draw(st.sampled_from(fitting))
        offset = draw(st.integers(0, SIZES_BYTES[file] - count) | st.just(SIZES_BYTES[file] - count))
        if draw(st.booleans()) and behind + count <= SIZES_BYTES[file]:
            offset = behind
        places.append((file, offset))
        behind = offset + count
    return pieces, places, draw(st.sampled_from([1, BLOCK_BYTES]))


def expected_slot(survey: Survey, sources: list[Path]) -> tuple[np.ndarray, np.ndarray]:
    """What the tensors of expert 0 hold, and where: by copying whole pieces."""
    slot = np.zeros(survey.stride_bytes, dtype=np.uint8)
    inside = np.zeros(survey.stride_bytes, dtype=bool)
    positions = tensor_positions(survey)[0, 0]
    for piece, (file, offset) in zip(survey.pieces, survey.place_table()[0, 0], strict=True):
        start = int(positions[piece.tensor]) + piece.position_bytes
        data = sources[file].read_bytes()[offset : offset + piece.source_bytes]
        slot[start : start + len(data)] = np.frombuffer(data, dtype=np.uint8)
        inside[start : start + len(data)] = True
    return slot, inside


@given(layouts(), st.booleans(), st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=200)
def test_any_layout_arrives_and_stays_in_its_slot(
    sources: list[Path], layout: tuple[list[list[int]], list[Place], int], direct: bool, order: random.Random
):
    """Reads in any order, as two reader threads would run them; the slots on both sides keep their bytes."""
    pieces, places, block_bytes = layout
    survey = make_survey(sources, pieces, [places], block_bytes)
    memory = make_arena(3 * survey.stride_bytes)
    opened = [CheckpointFile(str(path), direct and block_bytes > 1) for path in sources]
    spans: dict[int, list[ByteRange]] = {}
    for run in ReadPlan(survey).runs(0, 0):
        spans.setdefault(run.file, []).extend(chunk_spans(run, survey.stride_bytes, block_bytes > 1))
    reads = [(file, joined) for file, each in spans.items() for joined in join_spans(each)]
    order.shuffle(reads)
    for file, joined in reads:
        opened[file].read_joined(memory, joined, BounceBuffer())
    for file in opened:
        file.close()
    before, slot, behind = memory.reshape(3, -1)
    expected, inside = expected_slot(survey, sources)
    assert np.array_equal(slot[inside], expected[inside])
    assert (before == CANARY).all()
    assert (behind == CANARY).all()
    if block_bytes == 1:
        assert (slot[~inside] == CANARY).all()

"""Experts arrive from files and from the host store: whole, converted, in chunks, and beside their neighbours."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from expertflow.errors import CheckpointError, EngineError
from expertflow.tests.loader.arenas import CANARY, all_experts, fill, make_arena, payload
from expertflow.tests.loader.layouts import Place, make_survey, write_random
from expertflow.workers.checkpoint.stamps import stamp_files
from expertflow.workers.checkpoint.survey import Survey
from expertflow.workers.loader.transfer import expert_sources
from expertflow.workers.loader.transfer.expert_sources import ExpertSource, FileSource, StoreSource
from expertflow.workers.loader.transfer.files import CHUNK_BYTES, READ_BYTES, BounceBuffer
from expertflow.workers.loader.transfer.transfers import Transfer, failure_of
from msgspec import structs

EXPERTS: list[list[Place]] = [[(0, 100), (1, 7), (0, 4000)], [(1, 999), (1, 1999), (0, 1)]]
PIECES = [[500, 300], [257]]


@pytest.fixture(params=[1, 4096])
def survey(request: pytest.FixtureRequest, tmp_path: Path) -> Survey:
    """Two experts of two tensors, the first in pieces from two files at odd offsets, in small and large layout."""
    return make_survey(write_random(tmp_path, 9000, 9000), PIECES, EXPERTS, request.param)


def file_bytes(survey: Survey, expert: int) -> list[bytes]:
    """The tensors of an expert, by reading whole files."""
    tensors = [b"" for _ in survey.tensors]
    for piece, (file, offset) in zip(survey.pieces, survey.place_table()[0, expert], strict=True):
        data = Path(survey.files[file]).read_bytes()
        tensors[piece.tensor] += data[offset : offset + piece.source_bytes]
    return tensors


def slot_bytes(survey: Survey, memory: np.ndarray, slot: int, expert: int) -> list[bytes]:
    own = memory[slot * survey.stride_bytes :]
    return [own[each].tobytes() for each in payload(survey, 0, expert)]


def test_experts_arrive_from_files(survey: Survey):
    memory = make_arena(4 * survey.stride_bytes)
    fill(survey, {1: (0, 0), 2: (0, 1)}, memory)
    for slot, expert in ((1, 0), (2, 1)):
        assert slot_bytes(survey, memory, slot, expert) == file_bytes(survey, expert)
    slots = memory.reshape(4, -1)
    assert (slots[[0, 3]] == CANARY).all()


def test_experts_arrive_from_the_host_store(survey: Survey, monkeypatch: pytest.MonkeyPatch):
    """In chunks, the last one shorter; the neighbours keep their bytes."""
    monkeypatch.setattr(expert_sources, "CHUNK_BYTES", 500)
    store = make_arena(survey.expert_count * survey.stride_bytes)
    fill(survey, {0: (0, 0), 1: (0, 1)}, store)
    memory = make_arena(4 * survey.stride_bytes)
    fill(survey, {2: (0, 0), 1: (0, 1)}, memory, StoreSource(store, survey))
    for slot, expert in ((2, 0), (1, 1)):
        assert slot_bytes(survey, memory, slot, expert) == file_bytes(survey, expert)
    slots = memory.reshape(4, -1)
    assert (slots[[0, 3]] == CANARY).all()


def test_a_slot_filled_again_holds_the_new_expert_only(survey: Survey):
    """Experts lie at different offsets in the same slot."""
    memory = make_arena(survey.stride_bytes)
    for expert in (0, 1, 0):
        fill(survey, {0: (0, expert)}, memory)
        assert slot_bytes(survey, memory, 0, expert) == file_bytes(survey, expert)


@pytest.mark.parametrize("stored", ["float16", "float32", "float64"])
@pytest.mark.filterwarnings("ignore:invalid value")
def test_casts_at_odd_offsets(tmp_path: Path, stored: str, monkeypatch: pytest.MonkeyPatch):
    """Neither the file nor the block of rows need be aligned to an item."""
    monkeypatch.setattr(expert_sources, "CHUNK_BYTES", 1000)
    survey = make_survey(write_random(tmp_path, 9000, 9000), PIECES, EXPERTS, 1, "bfloat16", stored)
    memory = make_arena(3 * survey.stride_bytes)
    assert not any(transfer.error for transfer in fill(survey, {1: (0, 1)}, memory))
    values = [np.frombuffer(data, dtype=stored).astype(np.float64) for data in file_bytes(survey, 1)]
    for ours, theirs in zip(slot_bytes(survey, memory, 1, 1), values, strict=True):
        wide = (np.frombuffer(ours, dtype=np.uint16).astype(np.uint32) << 16).view(np.float32).astype(np.float64)
        usual = np.isfinite(theirs) & (np.abs(theirs) < 1e30) & (np.abs(theirs) > 1e-30)
        assert usual.any()
        assert np.allclose(wide[usual], theirs[usual], rtol=2**-8)


def test_large_runs_are_read_in_chunks(tmp_path: Path):
    """So that a need never waits longer than for one of them, converted ones included."""
    files = write_random(tmp_path, 17 * 2**20)
    for stored, most_bytes in (("bfloat16", READ_BYTES), ("float32", CHUNK_BYTES)):
        survey = make_survey(files, [[2**22]], [[(0, 800)]], 4096, "bfloat16", stored)
        source = FileSource(survey)
        chunks = source.chunks(make_arena(survey.stride_bytes), 0, 0, 0)
        source.close()
        assert len(chunks) >= survey.pieces[0].source_bytes // most_bytes


def test_a_file_that_shrank_is_the_transfers_error(tmp_path: Path):
    files = write_random(tmp_path, 9000, 9000)
    survey = make_survey(files, PIECES, EXPERTS, 4096)
    source = FileSource(survey)
    os.truncate(files[0], 600)  # expert 0 has bytes behind that, expert 1 has not
    transfers = {t.expert: t for t in fill(survey, {0: (0, 0), 1: (0, 1)}, make_arena(2 * survey.stride_bytes), source)}
    error = transfers[0].error
    assert isinstance(error, OSError)
    assert error.filename == str(files[0])
    assert transfers[1].error is None


@pytest.mark.parametrize(("stored", "rate"), [("bfloat16", 1), ("float32", 1), ("float32", 2)])
def test_a_file_that_is_written_to_while_it_is_read_is_named(tmp_path: Path, stored: str, rate: int):
    """What may be of other weights is never an expert: the file is looked at after every read. Plain and cast bytes."""
    files = write_random(tmp_path, 9000, 9000)
    survey = make_survey(files, PIECES, EXPERTS, 4096, "bfloat16", stored)
    source = FileSource(structs.replace(survey, stamps=stamp_files(files)))
    memory = make_arena(2 * survey.stride_bytes)
    chunks = source.chunks(memory, 0, 0, 0)
    for chunk in chunks[: len(chunks) // rate]:
        chunk(BounceBuffer())
    os.utime(files[0], ns=(0, 1))
    [transfer] = fill(survey, {1: (0, 0)}, memory, source)
    failure = failure_of(transfer, "folder")
    assert isinstance(failure, CheckpointError)
    assert (failure.where, failure.what) == (str(files[0]), "was overwritten since it was surveyed")


def test_a_file_that_was_cut_off_is_named_with_both_sizes(tmp_path: Path):
    files = write_random(tmp_path, 9000, 9000)
    survey = make_survey(files, PIECES, EXPERTS, 4096)
    source = FileSource(structs.replace(survey, stamps=stamp_files(files)))
    os.truncate(files[0], 600)
    [transfer] = fill(survey, {0: (0, 0)}, make_arena(survey.stride_bytes), source)
    failure = failure_of(transfer, "folder")
    assert isinstance(failure, CheckpointError)
    assert "it has 600 bytes, and had 9,000 when it was surveyed" in failure.what


def test_an_error_of_the_disk_is_none_of_the_checkpoint():
    """It may pass: a loader that is started again may read the same bytes."""
    failure = failure_of(Transfer(0, 3, 5, 0, error=OSError(errno.EIO, "Input/output error")), "folder")
    assert isinstance(failure, EngineError)
    assert "cannot read expert 5 of MoE layer 3" in failure.what
    assert failure_of(Transfer(0, 3, 5, 0), "folder") is None


def test_a_file_that_is_gone_is_the_checkpoints_fault(survey: Survey):
    """Between the survey and the loader's start anybody may have removed it; what was open already is closed."""
    before = len(os.listdir("/proc/self/fd"))
    os.unlink(survey.files[1])
    with pytest.raises(CheckpointError, match="cannot be opened") as refused:
        FileSource(survey)
    assert refused.value.where == survey.files[1]
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_closed_engine_has_closed_its_files(survey: Survey):
    before = len(os.listdir("/proc/self/fd"))
    source = FileSource(survey)
    assert len(os.listdir("/proc/self/fd")) == before + 2
    fill(survey, {}, make_arena(survey.stride_bytes), source)
    assert len(os.listdir("/proc/self/fd")) == before


def test_many_threads_fill_what_one_does(survey: Survey):
    memories = []
    for threads in (1, 4):
        memories.append(make_arena(survey.expert_count * survey.stride_bytes))
        fill(survey, all_experts(survey), memories[-1], threads=threads)
    first, second = memories
    for slot, (_, expert) in all_experts(survey).items():
        assert slot_bytes(survey, first, slot, expert) == slot_bytes(survey, second, slot, expert)


def test_sources_are_expert_sources(survey: Survey):
    """Both fit the interface that the engine asks for."""
    sources: list[ExpertSource] = [FileSource(survey), StoreSource(make_arena(8), survey)]
    for source in sources:
        source.close()

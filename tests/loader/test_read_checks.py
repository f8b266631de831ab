"""Checksums find what changed in an expert's stored bytes, whatever their layout; failed reads are tried once more."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from expertflow.errors import CheckpointError, EngineError
from expertflow.tests.loader.arenas import all_experts, fill, make_arena
from expertflow.tests.loader.layouts import Place, make_survey, write_random
from expertflow.workers.checkpoint.stamps import stamp_files
from expertflow.workers.checkpoint.survey import Survey
from expertflow.workers.loader import reads as reads_module
from expertflow.workers.loader.reads import Reads
from expertflow.workers.loader.transfer import expert_sums, files
from expertflow.workers.loader.transfer.expert_sums import sums_file
from expertflow.workers.loader.transfer.transfers import Transfer, failure_of
from msgspec import structs

EXPERTS: list[list[Place]] = [[(0, 100), (1, 7), (0, 4000)], [(1, 999), (1, 1999), (0, 1)]]
PIECES = [[500, 300], [257]]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("expertflow.workers.loader.transfer.read_checks.RETRY_S", 0.0)
    return tmp_path / "cache"


@pytest.fixture(params=[(1, "bfloat16"), (4096, "bfloat16"), (4096, "float32")])
def survey(request: pytest.FixtureRequest, tmp_path: Path) -> Survey:
    """Two experts of two tensors in two files: small layout, direct reads, and a cast."""
    block, stored = request.param
    return made(tmp_path, block, stored)


def made(folder: Path, block: int = 4096, stored: str = "bfloat16") -> Survey:
    written = write_random(folder, 9000, 9000)
    return structs.replace(
        make_survey(written, PIECES, EXPERTS, block, "bfloat16", stored), stamps=stamp_files(written)
    )


def flip(file: Path | str, offset: int) -> None:
    """Flip one bit and put the time back, as a disk that rots does."""
    before = os.stat(file)
    with open(file, "r+b") as stream:
        stream.seek(offset)
        byte = stream.read(1)[0]
        stream.seek(offset)
        stream.write(bytes([byte ^ 4]))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def read_all(survey: Survey, reads: Reads) -> dict[int, Transfer]:
    """The transfers of all experts, by expert."""
    memory = make_arena(survey.expert_count * survey.stride_bytes)
    return {each.expert: each for each in fill(survey, all_experts(survey), memory, reads.open(survey))}


def test_whole_bytes_pass(survey: Survey) -> None:
    for _ in range(2):
        assert not any(each.error for each in read_all(survey, Reads(verified=True)).values())


@pytest.mark.parametrize("place", [(0, 100), (0, 4005), (1, 7), (1, 520)])
def test_one_bit_is_found_and_file_and_expert_are_named(survey: Survey, place: Place) -> None:
    read_all(survey, Reads(verified=True))
    flip(survey.files[place[0]], place[1])
    reads = Reads(verified=True)
    transfers = read_all(survey, reads)
    failure = failure_of(transfers[0], "folder")
    assert isinstance(failure, CheckpointError)
    assert failure.where == survey.files[place[0]]
    assert "expert 0 of MoE layer 0" in failure.what and failure.lacks_subject
    assert reads.faults.mismatches >= 1
    assert not any(each.error for each in read_all(survey, Reads()).values()), "found without checksums: no test"


def test_bytes_beside_experts_do_not_count(survey: Survey) -> None:
    read_all(survey, Reads(verified=True))
    flip(survey.files[0], 8999)
    assert not any(each.error for each in read_all(survey, Reads(verified=True)).values())


def test_the_sums_do_not_depend_on_layout_or_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else every change of the budget would read the whole model again."""
    survey = made(tmp_path)
    read_all(survey, Reads(verified=True))
    monkeypatch.setattr(reads_module, "load_or_make_sums", loaded_only)
    monkeypatch.setattr(files, "CHUNK_BYTES", 512)
    monkeypatch.setattr(files, "READ_BYTES", 4096)
    for other in (structs.replace(survey, aligned=True), structs.replace(survey, block_bytes=1), survey):
        assert not any(each.error for each in read_all(other, Reads(verified=True)).values())


def loaded_only(survey: Survey, *args: Any) -> expert_sums.ExpertSums:
    file = sums_file(survey)
    assert file is not None
    kept = expert_sums._read(file, survey.expert_count)
    assert kept is not None, "made again"
    return kept


def test_sums_are_kept_by_files_and_made_again_where_they_are_damaged(tmp_path: Path, own_cache: Path) -> None:
    survey = made(tmp_path)
    said: list[str] = []
    for _ in range(2):
        Reads(True, 2, lambda what, done, total: said.append(f"{done} of {total}")).open(survey).close()
    assert said[-1] == "2 of 2" and said.count("2 of 2") <= 2, "made twice"
    [kept] = (own_cache / "expertflow" / "checksums").iterdir()
    flip(kept, kept.stat().st_size - 3)
    said.clear()
    Reads(True, 2, lambda what, done, total: said.append(what)).open(survey).close()
    assert said
    os.utime(survey.files[0], ns=(0, 1))
    assert sums_file(structs.replace(survey, stamps=stamp_files(map(Path, survey.files)))) != kept


def test_a_cache_that_cannot_be_written_is_no_error(own_cache: Path, tmp_path: Path) -> None:
    own_cache.write_text("a file, not a folder")
    Reads(verified=True).open(made(tmp_path)).close()


@pytest.mark.parametrize("times", [1, 2])
def test_a_read_that_comes_out_wrong_is_read_again(times: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once: the bytes on the disk are right. Always: the error."""
    survey = made(tmp_path)
    read_all(survey, Reads(verified=True))
    spoil_reads(monkeypatch, times)
    reads = Reads(verified=True)
    [transfer] = fill(survey, {0: (0, 0)}, make_arena(survey.stride_bytes), reads.open(survey), threads=1)
    assert reads.faults.mismatches == 1
    assert isinstance(transfer.error, CheckpointError) == (times == 2)


def spoil_reads(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """Change a byte of the first reads of each of two rounds of a transfer."""
    read, rounds = files.CheckpointFile.read_joined, iter([True] * times)

    def spoiled(file: files.CheckpointFile, memory: np.ndarray, spans: list[files.ByteRange], *args: Any) -> None:
        read(file, memory, spans, *args)
        if spans[0].lead_bytes == 100 and next(rounds, False):
            memory[spans[0].start_bytes + spans[0].lead_bytes] ^= 1

    monkeypatch.setattr(files.CheckpointFile, "read_joined", spoiled)


@pytest.mark.parametrize(("failures", "kind"), [(1, None), (2, EngineError)])
def test_an_error_of_the_disk_is_tried_once_more(
    failures: int, kind: type[Exception] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    survey = made(tmp_path)
    monkeypatch.setattr(os, "preadv", failing(os.preadv, failures))
    reads = Reads()
    [transfer] = fill(survey, {0: (0, 1)}, make_arena(survey.stride_bytes), reads.open(survey), threads=1)
    failure = failure_of(transfer, "folder")
    assert reads.faults.retries == 1
    assert kind is None if failure is None else isinstance(failure, EngineError) and failure.where in survey.files


def failing(preadv: Callable[..., int], failures: int) -> Callable[..., int]:
    left = [failures]

    def read(*args: Any) -> int:
        if left[0]:
            left[0] -= 1
            raise OSError(5, "Input/output error")
        return preadv(*args)

    return read


def test_without_the_library_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "isal", None)
    with pytest.raises(Exception, match=r"expertflow-runtime\[checksums\]"):
        Reads(verified=True).open(made(tmp_path))

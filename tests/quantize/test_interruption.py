"""Copies that are broken off, written twice at once or made of files that change: complete and right, or refused."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from expertflow.errors import CheckpointError, UsageError
from expertflow.workers.checkpoint import shards
from expertflow.workers.checkpoint.headers import StoredTensor
from expertflow.workers.quantize.plan import Precision
from expertflow.workers.quantize.unfinished import STATE
from expertflow.workers.quantize.writing import quantise_checkpoint
from safetensors.torch import save_file

EXPERT = "model.layers.{}.mlp.experts.{}.{}_proj.weight"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    names = [EXPERT.format(layer, expert, kind) for layer in (0, 1) for expert in (0, 1) for kind in ("gate", "down")]
    save_file({name: torch.randn(32, 32).bfloat16() for name in names}, folder / "model.safetensors")
    return folder


def quantised(source: Path, destination: Path, progress: shards.ReportProgress = lambda *_: None) -> dict[str, bytes]:
    quantise_checkpoint(source, destination, Precision(4, 32), progress)
    return contents(destination)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


class Killed(BaseException):
    """The end of a process: nothing behind it is done."""


@pytest.mark.parametrize("function", ["rename", "unlink", "mkdir", "write_text"])
@pytest.mark.parametrize("nth", [1, 2, 3])
def test_a_run_killed_at_any_change_of_a_folder_gives_the_whole_copy_at_the_next(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, nth: int
) -> None:
    whole, calls, real = quantised(source, tmp_path / "whole"), [0], getattr(Path, function)

    def killing(path: Path, *words: object, **options: object) -> object:
        calls[0] += 1
        if calls[0] == nth:
            if function == "write_text":
                real(path, str(words[0])[:5])
            raise Killed
        return real(path, *words, **options)

    with monkeypatch.context() as patched:
        patched.setattr(Path, function, killing)
        with suppress(Killed):
            quantised(source, tmp_path / "copy")
    if not (tmp_path / "copy").exists():
        quantised(source, tmp_path / "copy")
    found = contents(tmp_path / "copy")
    assert {name: found[name] for name in whole} == whole


def test_two_runs_do_not_write_one_copy(source: Path, tmp_path: Path) -> None:
    refused: list[UsageError] = []

    def run_again(*_: object) -> None:
        with pytest.raises(UsageError, match="is being written by another run") as error:
            quantised(source, tmp_path / "copy")
        refused.append(error.value)

    quantised(source, tmp_path / "copy", run_again)
    assert refused and STATE not in contents(tmp_path / "copy")


def test_a_source_that_changes_meanwhile_gives_no_copy(source: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="was changed while it was copied"):
        quantised(source, tmp_path / "copy", lambda *_: os.utime(source / "model.safetensors", (1, 1)))
    assert not (tmp_path / "copy").exists()
    quantised(source, tmp_path / "copy")


def test_a_source_that_is_cut_off_meanwhile_is_not_read_as_zeros(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"123")
    with pytest.raises(CheckpointError, match="was cut off inside weight"):
        StoredTensor("weight", 0, "bfloat16", [2], 0, 4).read(tmp_path / "data")


def test_a_full_disk_is_told_with_its_folder(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(UsageError, match="No space left on device") as error:
            quantised(source, tmp_path / "copy")
    assert error.value.where == str(tmp_path)
    quantised(source, tmp_path / "copy")


@pytest.mark.parametrize("shape", [(0, 32), (32, 0)])
def test_a_matrix_without_values_is_refused_by_name(source: Path, tmp_path: Path, shape: tuple[int, int]) -> None:
    name = EXPERT.format(0, 0, "up")
    save_file({name: torch.zeros(shape).bfloat16()}, source / "model.safetensors")
    for group in (32, 0):
        with pytest.raises(UsageError, match="not a matrix") as error:
            quantise_checkpoint(source, tmp_path / "copy", Precision(4, group), lambda *_: None)
        assert error.value.where == name

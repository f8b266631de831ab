"""A file that is not as it was surveyed is named, with what differs; one that is the same passes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from expertflow.errors import CheckpointError
from expertflow.tests.checkpoint.broken import WEIGHTS
from expertflow.tests.models.families import save_tiny
from expertflow.workers.checkpoint.stamps import OpenFiles, check_files, stamp_files
from expertflow.workers.compute.skeleton import load_unbound
from expertflow.workers.loader.transfer.expert_sources import FileSource
from expertflow.workers.surveyor.surveyor import survey_folder

BYTES = b"0123456789" * 10


def overwrite(file: Path) -> None:
    """As many other bytes, in place, long enough after the survey for a clock of 10 ms."""
    with file.open("r+b") as stream:
        stream.write(b"x")
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 10**7))


def replace(file: Path) -> None:
    """Another file of that name, size and time: as an atomic update, or a copy that keeps times."""
    then = file.stat()
    fresh = file.with_name("fresh")
    fresh.write_bytes(file.read_bytes())
    os.utime(fresh, ns=(0, then.st_mtime_ns))
    fresh.replace(file)


def grow(file: Path) -> None:
    with file.open("ab") as stream:
        stream.write(b"more")


CHANGES: list[tuple[Callable[[Path], None], str, str]] = [
    (overwrite, "was overwritten since it was surveyed", "Leave a model's files alone while it runs"),
    (replace, "was replaced by another file since", "start the engine again"),
    (grow, "has grown from 100 to 104 bytes", "start the engine again"),
    (lambda file: os.truncate(file, 7), "was cut off: it has 7 bytes, and had 100", "Download the file again"),
    (os.unlink, "is gone since it was surveyed (No such file or directory)", "start the engine again"),
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "weights").write_bytes(BYTES)
    return tmp_path / "weights"


@pytest.mark.parametrize(("change", "what", "remedy"), CHANGES)
def test_a_change_is_named_with_the_file_and_what_to_do(
    file: Path, change: Callable[[Path], None], what: str, remedy: str
):
    stamps = stamp_files([file])
    check_files(stamps)
    change(file)
    with pytest.raises(CheckpointError) as caught:
        check_files(stamps)
    assert caught.value.where == str(file)
    assert what in caught.value.what
    assert remedy in caught.value.remedy
    with pytest.raises(CheckpointError):
        OpenFiles(stamps)


@pytest.mark.parametrize(("change", "what"), [each[:2] for each in CHANGES if each[0] not in (replace, os.unlink)])
def test_an_open_file_that_is_written_to_is_noticed(file: Path, change: Callable[[Path], None], what: str):
    opened = OpenFiles(stamp_files([file]))
    opened.check()
    change(file)
    with pytest.raises(CheckpointError, match="since|was cut off") as caught:
        opened.check()
    opened.close()
    assert what in caught.value.what


@pytest.mark.parametrize("change", [replace, os.unlink])
def test_an_open_file_whose_name_goes_is_still_the_same(file: Path, change: Callable[[Path], None]):
    """Its bytes stay where they were mapped: ending a running engine for that would lose text for nothing."""
    opened = OpenFiles(stamp_files([file]))
    change(file)
    opened.check()
    opened.close()


def test_reading_changes_no_stamp(file: Path):
    stamps = stamp_files([file])
    file.read_bytes()
    file.chmod(0o400)
    check_files(stamps)


@pytest.mark.parametrize("name", [WEIGHTS, "config.json"])
def test_a_process_that_starts_later_refuses_another_model(tmp_path: Path, name: str):
    """A compute or loader started again would mix two sets of weights, or build another model around them."""
    save_tiny("olmoe", tmp_path, dtype=torch.float32)
    survey = survey_folder(tmp_path)
    load_unbound(survey)
    FileSource(survey).close()
    overwrite(tmp_path / name)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(CheckpointError, match="overwritten since it was surveyed") as caught:
        load_unbound(survey)
    assert caught.value.where == str(tmp_path / name)
    if name == WEIGHTS:
        with pytest.raises(CheckpointError, match="overwritten since it was surveyed"):
            FileSource(survey)
    assert len(os.listdir("/proc/self/fd")) == before

"""Files of a job as users name them: defaults, stdin, stdout, and models that are told apart."""

from __future__ import annotations

import io
import os
import shutil
import sys
from pathlib import Path

import pytest
from expertflow.errors import UsageError
from expertflow.runtime.batch_files.job import STREAM, JobFiles, JobModel, open_input, open_job
from expertflow.runtime.batch_files.model_digest import SAMPLE_BYTES, model_digest
from expertflow.tests.runtime.batch_files.jobs import request_text


def test_errors_are_beside_the_results(tmp_path: Path) -> None:
    requests, results = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    assert JobFiles.of(requests, results, None).errors == tmp_path / "out.errors.jsonl"
    assert JobFiles.of(requests, tmp_path / "out", None).errors == tmp_path / "out.errors"
    assert JobFiles.of(requests, STREAM, None).errors == STREAM


CLASHES = [("in", None), ("out", "in"), ("link", None), ("-", "err"), ("out", "-")]


@pytest.mark.parametrize(("results", "errors"), CLASHES)
def test_files_that_would_overwrite_each_other_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, results: str, errors: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("in").touch()
    Path("link").symlink_to("in")
    with pytest.raises(UsageError):
        JobFiles.of(Path("in"), Path(results), Path(errors) if errors else None)


def test_stdin_is_read_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    stdin = io.TextIOWrapper(io.BytesIO(request_text("a").encode()))
    monkeypatch.setattr(sys, "stdin", stdin)
    with open_input(STREAM) as given:
        assert given.name == "stdin" and given.request(0).custom_id == "a"
    assert not stdin.closed


def test_a_pipe_is_read_as_stdin_is(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.write(write, request_text("a").encode())
    os.close(write)
    with open_input(Path(f"/dev/fd/{read}")) as given:
        assert given.request(0).custom_id == "a"
    os.close(read)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(UsageError, match="cannot be read"), open_input(path):
            pass


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(3_000_000))
    return folder


def test_a_changed_model_has_another_digest(model: Path, tmp_path: Path) -> None:
    digests = [model_digest(model)]
    copy = shutil.copytree(model, tmp_path / "copy")
    assert model_digest(copy) == digests[0]
    (model / "README.md").write_text("another text")
    assert model_digest(model) == digests[0]
    (model / "config.json").write_text("{ }")
    digests.append(model_digest(model))
    for place in (0, 3_000_000 - SAMPLE_BYTES, 2_999_999):
        with (model / "model.safetensors").open("r+b") as file:
            file.seek(place)
            file.write(b"x")
        digests.append(model_digest(model))
    assert len(set(digests)) == len(digests)


def test_results_are_of_the_time_of_the_requests(tmp_path: Path, model: Path) -> None:
    """Two runs of one file give the same bytes."""
    requests = tmp_path / "in"
    requests.write_text(request_text("a"))
    os.utime(requests, (5, 1_000_000_000))
    files = JobFiles.of(requests, tmp_path / "out", None)
    with open_input(requests) as given, open_job(files, given, JobModel(model, "m"), {}) as job:
        assert job.created == 1_000_000_000 and job.name == given.sha256[:16]

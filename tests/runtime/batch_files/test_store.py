"""A job ends each request exactly once, wherever it is killed; other jobs, files and processes are kept out."""

from __future__ import annotations

import itertools
import json
import os
import random
import resource
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from expertflow.errors import UsageError
from expertflow.runtime.batch_files.append_file import AppendFile, StreamOutput
from expertflow.runtime.batch_files.errors import InputChanged, JobMismatch, OutputError
from expertflow.runtime.batch_files.header import decode_header, header_path
from expertflow.runtime.batch_files.store import JobStore, sort_results
from expertflow.tests.runtime.batch_files.jobs import fails, header_of, indexed, request_text, run_job
from hypothesis import given, settings
from hypothesis import strategies as st

LINES = [request_text(f"r{number}") for number in range(12)]
LINES[3] = "{broken"
LINES[7] = LINES[2]


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def whole(folder: Path) -> tuple[list[bytes], list[bytes]]:
    """Return the sorted lines of both files."""
    return tuple(sorted((folder / name).read_bytes().splitlines(keepends=True)) for name in ("out", "err"))  # pyright: ignore


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_a_job_killed_at_any_byte_ends_as_one_left_alone(data: st.DataObject) -> None:
    """Both files are cut anywhere, also in the middle of lines, any number of times; the order of work is another."""
    with tempfile.TemporaryDirectory() as name, tempfile.TemporaryDirectory() as alone:
        folder = Path(name)
        for _ in range(data.draw(st.integers(0, 3))):
            order = random.Random(data.draw(st.integers(0, 9)))
            run_job(folder, LINES, iter(lambda order=order: order.random(), None), most=data.draw(st.integers(0, 12)))
            for file in (folder / "out", folder / "err"):
                os.truncate(file, data.draw(st.integers(0, file.stat().st_size)))
        run_job(folder, LINES)
        run_job(Path(alone), LINES)
        assert whole(folder) == whole(Path(alone))
        assert run_job(folder, LINES) == 0


def test_each_line_is_in_one_of_the_files(tmp_path: Path) -> None:
    assert run_job(tmp_path, LINES) == 12
    good = [f"r{number}" for number in range(12) if number not in (3, 7)]
    assert [line["custom_id"] for line in read(tmp_path / "out")] == [name for name in good if not fails(name)]
    errors = read(tmp_path / "err")
    assert [line["line"] for line in errors[:2]] == [4, 8]
    assert [line["error"]["code"] for line in errors[:2]] == ["invalid_json", "duplicate_custom_id"]
    assert [line["custom_id"] for line in errors[2:]] == [name for name in good if fails(name)] != []
    assert all(line["response"]["status_code"] == 400 and line["error"] is None for line in errors[2:])
    for line in read(tmp_path / "out"):
        assert list(line) == ["id", "custom_id", "response", "error"] and line["error"] is None
        assert list(line["response"]) == ["status_code", "request_id", "body"]


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"model": "other"}, "the name of the model"),
        ({"revision": "other"}, "the revision"),
        ({"model_digest": "other"}, "the model's files"),
        ({"options": {"batch_invariant": True}}, "batch_invariant (False then, True now)"),
        ({"input_sha256": "other"}, "the file of requests"),
    ],
)
def test_another_job_is_refused(tmp_path: Path, changed: dict, named: str) -> None:
    """Half of the results would be of one model, half of another."""
    run_job(tmp_path, LINES, most=4)
    before = whole(tmp_path)
    given_lines = indexed(LINES)
    with pytest.raises(JobMismatch) as refused:
        JobStore(tmp_path / "out", tmp_path / "err", header_of(given_lines, **changed), given_lines.index)
    assert named in str(refused.value) and whole(tmp_path) == before


def test_when_a_job_was_created_is_no_difference(tmp_path: Path) -> None:
    """Touching the file of requests makes no other job of it; results keep the first time."""
    run_job(tmp_path, LINES, most=4)
    given_lines = indexed(LINES)
    header = header_of(given_lines, created=99)
    with closing(JobStore(tmp_path / "out", tmp_path / "err", header, given_lines.index)) as store:
        assert store.header.created == 1


@pytest.mark.parametrize("name", ["out", "err"])
def test_lines_without_a_header_are_kept(tmp_path: Path, name: str) -> None:
    """A file of something else must not be appended to."""
    (tmp_path / name).write_bytes(b"{}\n")
    with pytest.raises(JobMismatch, match="has lines already"):
        run_job(tmp_path, LINES)
    assert (tmp_path / name).read_bytes() == b"{}\n"


def test_a_broken_header_is_named(tmp_path: Path) -> None:
    run_job(tmp_path, LINES, most=1)
    header_path(tmp_path / "out").write_bytes(b"{")
    with pytest.raises(JobMismatch, match="out.job"):
        run_job(tmp_path, LINES)


def test_the_header_says_what_it_binds(tmp_path: Path) -> None:
    run_job(tmp_path, LINES)
    header = decode_header(header_path(tmp_path / "out").read_bytes())
    assert header == header_of(indexed(LINES)) and header.lines == 12


STRANGE = [b'{"custom_id": "nobody"}\n', b'{"custom_id": null}\n', b'{"line": 99, "custom_id": null}\n', b"\0\0\n"]


@pytest.mark.parametrize("line", STRANGE)
def test_a_strange_line_is_named(tmp_path: Path, line: bytes) -> None:
    run_job(tmp_path, LINES, most=4)
    with (tmp_path / "out").open("ab") as file:
        file.write(line)
    count = len((tmp_path / "out").read_bytes().splitlines())
    with pytest.raises(UsageError, match=f"out, line {count}"):
        run_job(tmp_path, LINES)


def test_a_request_that_ended_twice_is_named(tmp_path: Path) -> None:
    run_job(tmp_path, LINES)
    first = (tmp_path / "out").read_bytes().splitlines(keepends=True)[0]
    with (tmp_path / "out").open("ab") as file:
        file.write(first)
    with pytest.raises(JobMismatch, match="has a line already"):
        run_job(tmp_path, LINES)


def test_two_runs_do_not_write_one_file(tmp_path: Path) -> None:
    with closing(AppendFile(tmp_path / "out")), pytest.raises(UsageError, match="another run"):
        run_job(tmp_path, LINES)
    assert run_job(tmp_path, LINES) == 12


def test_results_and_errors_are_two_files(tmp_path: Path) -> None:
    given_lines = indexed(LINES)
    with pytest.raises(UsageError, match="file of results"):
        JobStore(tmp_path / "out", tmp_path / "x" / ".." / "out", header_of(given_lines), given_lines.index)


@pytest.mark.parametrize("path", ["missing/out", "folder", "pipe"])
def test_what_is_no_file_is_refused(tmp_path: Path, path: str) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError):
        AppendFile(tmp_path / path)


@contextmanager
def limited(size_bytes: int) -> Iterator[None]:
    """Files cannot grow beyond this size: writes fall short there, and the next fails, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 40))
def test_a_line_that_does_not_fit_leaves_nothing(room_bytes: int) -> None:
    with tempfile.TemporaryDirectory() as folder, closing(AppendFile(Path(folder, "out"))) as file:
        written = 0
        with limited(room_bytes), pytest.raises(OutputError, match="cannot be written"):
            for _ in itertools.count():
                file.append(b"0123456\n")
                written += 1
        assert written == room_bytes // 8
        file.append(b"8\n")
        assert file.path.read_bytes() == b"0123456\n" * written + b"8\n"


def test_a_job_on_a_full_disk_goes_on_when_there_is_room(tmp_path: Path) -> None:
    run_job(tmp_path, LINES, most=4)
    with limited(max((tmp_path / name).stat().st_size for name in ("out", "err")) + 100), pytest.raises(OutputError):
        run_job(tmp_path, LINES)
    run_job(tmp_path, LINES)
    (tmp_path / "alone").mkdir()
    run_job(tmp_path / "alone", LINES)
    assert whole(tmp_path) == whole(tmp_path / "alone")


def test_a_full_disk_is_named() -> None:
    with open("/dev/full", "wb") as full, pytest.raises(OutputError, match="the disk is full"):
        StreamOutput(full.fileno(), "stdout").append(b"a\n")


def test_results_are_sorted_by_the_requests(tmp_path: Path) -> None:
    order = random.Random(1)
    run_job(tmp_path, LINES, iter(order.random, None))
    before = whole(tmp_path)
    index = indexed(LINES).index
    assert [line["custom_id"] for line in read(tmp_path / "out")] != sorted_ids(tmp_path)
    for name in ("out", "err"):
        sort_results(tmp_path / name, index)
    assert [line["custom_id"] for line in read(tmp_path / "out")] == sorted_ids(tmp_path)
    numbers = [line["line"] for line in read(tmp_path / "err")]
    assert numbers == sorted(numbers)
    assert whole(tmp_path) == before and not list(tmp_path.glob("*.sorting"))


def sorted_ids(folder: Path) -> list[str]:
    return sorted((line["custom_id"] for line in read(folder / "out")), key=lambda name: int(name[1:]))


def test_sorting_on_a_full_disk_keeps_the_results(tmp_path: Path) -> None:
    order = random.Random(1)
    run_job(tmp_path, LINES, iter(order.random, None))
    before = (tmp_path / "out").read_bytes()
    with limited(10), pytest.raises(OutputError):
        sort_results(tmp_path / "out", indexed(LINES).index)
    assert (tmp_path / "out").read_bytes() == before and not list(tmp_path.glob("*.sorting"))


def test_a_file_that_changes_under_the_job_is_noticed() -> None:
    given_lines = indexed(LINES)
    content = given_lines.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    given_lines.file.seek(0)
    given_lines.file.write(content.replace(b'"r5"', b'"q5"'))
    assert given_lines.request(4).custom_id == "r4"
    with pytest.raises(InputChanged, match=r"in.jsonl, line 6"):
        given_lines.request(5)


def test_lines_are_synced_once_and_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill loses nothing that was written; a power cut loses what was not synced."""
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    file = AppendFile(tmp_path / "out")
    file.append(b"1\n")
    assert synced == []
    file.sync()
    file.sync()
    assert len(synced) == 1
    file.append(b"2\n")
    file.close()
    assert len(synced) == 2 and len(set(synced)) == 1


def test_a_request_has_ended_when_its_line_is_written(tmp_path: Path) -> None:
    given = indexed([request_text("a"), request_text("b")])
    with closing(JobStore(tmp_path / "out", tmp_path / "err", header_of(given), given.index)) as store:
        store.end(0, b"{}\n")
        assert given.index.ended.tolist() == [True, False] and given.index.open_rows.tolist() == [1]

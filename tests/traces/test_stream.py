"""A stream is readable by anybody, at any moment, however its writer ended."""

from __future__ import annotations

import io
import logging
from pathlib import Path

import msgpack
import msgspec
import numpy as np
import pytest
from expertflow.errors import UsageError
from expertflow.tests.traces.streams import LAYERS, TOP_K, encode, header, plan, route, step, write
from expertflow.workers.traces.folder import claim_folder, read_header, read_plans, read_steps
from expertflow.workers.traces.records import VERSION, TraceRecord
from expertflow.workers.traces.stream import TraceFile, read_records
from hypothesis import given
from hypothesis import strategies as st

STEPS = [step(0, [(0, 0), (0, 1), (1, 0)]), step(1, [(0, 2), (1, 1)], unit=3)]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    file = TraceFile(str(tmp_path), header(epoch=7))
    for each in STEPS:
        file.write(each)
    assert list(read_records(tmp_path / "compute.7.msgpack")) == [header(epoch=7), *STEPS]
    file.close()


def test_every_record_can_be_read_when_it_was_written(tmp_path: Path) -> None:
    """Readable while it grows: nothing waits in a buffer of the writer."""
    file = TraceFile(str(tmp_path), header())
    for count, each in enumerate(STEPS, 1):
        file.write(each)
        assert list(read_steps(tmp_path)) == STEPS[:count]
    file.close()


def test_a_tail_torn_at_any_byte_is_left_out(tmp_path: Path) -> None:
    file = tmp_path / "compute.1.msgpack"
    whole = [header(), *STEPS]
    ends = [len(encode(*whole[:count])) for count in range(len(whole) + 1)]
    stream = encode(*whole)
    for cut in range(len(stream) + 1):
        file.write_bytes(stream[:cut])
        complete = sum(end <= cut for end in ends) - 1
        assert list(read_records(file)) == whole[:complete]


def test_plain_msgpack_reads_it(tmp_path: Path) -> None:
    """Somebody else's reader needs nothing of ours."""
    file = write(tmp_path, STEPS[0])
    first, record = msgpack.Unpacker(io.BytesIO(file.read_bytes()))
    assert (first["type"], first["version"], first["layers"]) == ("TraceHeader", 1, LAYERS)
    assert record["type"] == "TracedStep" and record["phase"] == "prefill" and record["rows"] == [0, 0, 1]
    experts = np.frombuffer(record["experts"], "<u2").reshape(3, LAYERS, TOP_K)
    assert np.array_equal(experts[1], route(0, 1))


@given(
    numbers=st.lists(st.integers(0, 2**63 - 1), max_size=5),
    raw=st.binary(max_size=50),
    phase=st.sampled_from(["prefill", "decode"]),
)
def test_any_record_survives_the_way(numbers: list[int], raw: bytes, phase: str, tmp_path_factory) -> None:
    record = msgspec.structs.replace(
        STEPS[0], token_ids=numbers, seeds=numbers, sampled=numbers, hidden=raw, hints=raw, phase=phase
    )
    file = tmp_path_factory.mktemp("any") / "compute.1.msgpack"
    file.write_bytes(encode(record, plan(3, 4)))
    assert list(read_records(file)) == [record, plan(3, 4)]


@given(st.binary(max_size=200))
def test_garbage_is_refused_or_empty_but_never_a_crash(tmp_path_factory, garbage: bytes) -> None:
    file = tmp_path_factory.mktemp("garbage") / "compute.1.msgpack"
    file.write_bytes(garbage)
    try:
        records: list[TraceRecord] = list(read_records(file))
    except UsageError as error:
        assert error.where == str(file)
    else:
        assert not records


@pytest.mark.parametrize(
    ("garbage", "reason"),
    [
        (b"\xc1", "its bytes are no MessagePack"),
        (b"\x91" * 2000 + b"\xc0", "nested too deeply"),
        (b"\x81\x90\xc0", "unhashable"),
        (b"\xdd\x7f\xff\xff\xff", "exceeds"),
        (b"\x05", "message 1: Expected `object`"),
    ],
)
def test_what_is_no_trace_is_said_why(tmp_path: Path, garbage: bytes, reason: str) -> None:
    (tmp_path / "compute.1.msgpack").write_bytes(garbage)
    with pytest.raises(UsageError, match=rf"is no trace \(.*{reason}"):
        list(read_records(tmp_path / "compute.1.msgpack"))


def test_a_newer_version_is_refused_by_number(tmp_path: Path) -> None:
    file = tmp_path / "compute.1.msgpack"
    file.write_bytes(encode(header(version=VERSION + 1)))
    with pytest.raises(UsageError, match=f"version {VERSION + 1}"):
        read_header(tmp_path)


def test_fields_of_a_later_time_are_passed_over(tmp_path: Path) -> None:
    facts = msgspec.to_builtins(STEPS[0], builtin_types=(bytes,)) | {"colour": "blue"}
    file = tmp_path / "compute.1.msgpack"
    file.write_bytes(msgspec.msgpack.encode(facts))
    assert list(read_records(file)) == [STEPS[0]]


def test_starts_are_read_in_their_order(tmp_path: Path) -> None:
    """The tenth start comes after the second."""
    for epoch in (10, 2, 1):
        write(tmp_path, step(epoch, [(epoch, 0)]), epoch=epoch)
        write(tmp_path, plan(epoch, 1), stage="predictor", epoch=epoch)
    (tmp_path / "compute.old.msgpack").write_bytes(b"\xc1")
    assert [each.step for each in read_steps(tmp_path)] == [1, 2, 10]
    assert [each.step for each in read_plans(tmp_path)] == [1, 2, 10]


def test_files_of_two_models_are_refused(tmp_path: Path) -> None:
    write(tmp_path, STEPS[0])
    (tmp_path / "compute.2.msgpack").write_bytes(encode(header(epoch=2, fingerprint="0" * 32)))
    with pytest.raises(UsageError, match="different models"):
        read_header(tmp_path)


def test_a_file_without_header_is_refused(tmp_path: Path) -> None:
    (tmp_path / "compute.1.msgpack").write_bytes(encode(STEPS[0]))
    with pytest.raises(UsageError, match="header"):
        read_header(tmp_path)


def test_a_folder_is_claimed_once(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "trace"
    claim_folder(str(folder))
    claim_folder(str(folder))
    write(folder, stage="predictor")
    with pytest.raises(UsageError, match="holds a trace already"):
        claim_folder(str(folder))


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be made"):
        claim_folder(str(tmp_path / "file"))
    with pytest.raises(UsageError, match="cannot be written"):
        TraceFile(str(tmp_path / "file"), header())


def test_a_full_disk_ends_the_trace_and_nothing_else(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "compute.1.msgpack").symlink_to("/dev/full")
    with caplog.at_level(logging.WARNING):
        file = TraceFile(str(tmp_path), header())
        file.write(STEPS[0])
        file.close()
    assert len(caplog.records) == 1 and "trace ends here" in caplog.text

"""The oracle knows what a recording tells, and recordings are read however they ended."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest
from expertflow.errors import UsageError
from expertflow.ipc.messages import Miss, StepRouting
from expertflow.tests.predictor.routes import coming, used_of
from expertflow.workers.predictor.baselines.oracle import Oracle
from expertflow.workers.predictor.routing_recording import read_recording
from expertflow.workers.traces.routing import read_routing, used_keys

LAYERS, EXPERTS = 2, 6


def recorded(step: int, rows: list[int]) -> StepRouting:
    """Row r uses experts r and r + step in layer 0, r + 1 in layer 1 (modulo)."""
    routing = np.array([[[row, row + step], [row + 1, row + 1]] for row in rows]) % EXPERTS
    return used_of(step, [0] * len(rows), routing, rows)


def write(path: Path, messages: Sequence[msgspec.Struct], tail: bytes = b"") -> Path:
    path.write_bytes(b"".join(msgspec.msgpack.encode(message) for message in messages) + tail)
    return path


def test_an_oracle_foresees_the_union_of_what_was_recorded() -> None:
    oracle = Oracle(LAYERS, EXPERTS, [recorded(2, [0, 1]), recorded(3, [1])])
    expected = np.zeros((LAYERS, EXPERTS), np.float32)
    expected[0, [0, 2, 1, 3]] = 1
    expected[1, [1, 2]] = 1
    assert np.array_equal(oracle.forecast(coming(2, [0, 0], rows=[0, 1])), expected)


def test_an_oracle_foresees_nothing_for_what_was_not_recorded() -> None:
    oracle = Oracle(LAYERS, EXPERTS, [recorded(2, [0])])
    assert not oracle.forecast(coming(3, [0], rows=[0])).any()
    assert not oracle.forecast(coming(2, [0], rows=[5])).any()


def test_an_oracle_believes_the_later_of_two_recordings() -> None:
    """A sequence that was computed again after a death has its routes twice."""
    reissue_copies = used_of(2, [0], np.full((1, LAYERS, 1), 5), rows=[0])
    oracle = Oracle(LAYERS, EXPERTS, [recorded(2, [0]), reissue_copies])
    assert list(np.flatnonzero(oracle.forecast(coming(2, [0], rows=[0]))[0])) == [5]


def test_an_oracle_passes_over_routes_of_another_model() -> None:
    oracle = Oracle(LAYERS, 3, [recorded(2, [4])])
    assert not oracle.forecast(coming(2, [0], rows=[4])).any()


def test_a_recording_is_read_message_by_message(tmp_path: Path) -> None:
    messages = [recorded(step, [0, 1]) for step in range(5)]
    assert list(read_recording(write(tmp_path / "routes.1.msgpack", messages))) == messages


def test_a_recording_of_an_older_version_is_read(tmp_path: Path) -> None:
    """The message was called Used; recordings of then are kept by users."""
    message = recorded(3, [0, 1])
    renamed = msgspec.msgpack.decode(msgspec.msgpack.encode(message)) | {"type": "Used"}
    (tmp_path / "routes.1.msgpack").write_bytes(msgspec.msgpack.encode(renamed))
    assert list(read_recording(tmp_path)) == [message]


@pytest.mark.parametrize("cut", [1, 7, 40])
def test_a_torn_tail_is_left_out(tmp_path: Path, cut: int) -> None:
    """A killed run leaves half a message at the end."""
    messages = [recorded(step, [0, 1]) for step in range(3)]
    torn = msgspec.msgpack.encode(recorded(9, [3]))[:cut]
    assert list(read_recording(write(tmp_path / "torn", messages, torn))) == messages


def test_a_folder_is_read_in_the_order_of_epochs(tmp_path: Path) -> None:
    """The tenth start comes after the second."""
    for epoch in (10, 2, 1):
        write(tmp_path / f"routes.{epoch}.msgpack", [recorded(epoch, [0])])
    write(tmp_path / "steps.1.msgpack", [Miss(0, 0, [])])
    assert [used.step for used in read_recording(tmp_path)] == [1, 2, 10]


@pytest.mark.parametrize("content", [msgspec.msgpack.encode(Miss(0, 0, [1])), b"\xc1\xc1", b"\x01"])
def test_something_else_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "other"
    file.write_bytes(content)
    with pytest.raises(UsageError, match="is no recording of routing"):
        list(read_recording(file))


def test_routing_reads_as_tokens_by_layers_by_choices() -> None:
    routing = read_routing(recorded(2, [0, 1]), LAYERS, EXPERTS)
    assert routing is not None
    assert routing.tolist() == [[[0, 2], [1, 1]], [[1, 3], [2, 2]]]
    assert used_keys(routing, EXPERTS).tolist() == [0, 1, 2, 3, EXPERTS + 1, EXPERTS + 2]


def test_routing_of_no_tokens_is_empty_not_an_error() -> None:
    routing = read_routing(used_of(0, [], np.zeros((0, LAYERS, 2))), LAYERS, EXPERTS)
    assert routing is not None and used_keys(routing, EXPERTS).size == 0

"""A ledger's log can be asked again, and says what is wrong with it."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from expertflow.errors import UsageError
from expertflow.ipc.messages import Hint, Miss, Released, ResidentTable, StepPrediction, StepRouting
from expertflow.runtime.replay.ledger_log import replay_ledger_log
from expertflow.workers.loader.events import ComputeJoined, FillDone, LedgerEvent
from expertflow.workers.loader.ledger_log import LedgerHeader, LedgerLog, read_ledger_log

HEADER = LedgerHeader(slots=3, layers=2, experts=4, top_k=1, policy="lru", fills_in_flight=2, recalls_ahead=1)
USED = StepRouting(
    step=0, token_ids=[1], rows=[0], positions=[0], top_k=1, experts=bytes([1, 0, 2, 0]), hits=0, misses=2, stall_ns=5
)
EVENTS: list[LedgerEvent] = [
    ComputeJoined(),
    ResidentTable({}),
    StepPrediction(0, bytes([0, 255, 0, 0, 0, 0, 255, 0])),
    Hint(0, 1, bytes([0, 0, 255, 0])),
    Miss(0, 0, [1]),
    FillDone(0),
    FillDone(1, ok=False),
    Released([0], 0, 1),
    Miss(0, 1, [2], [1]),
    USED,
]


def write_log(folder: Path) -> Path:
    ledger = HEADER.make()
    log = LedgerLog.open(str(folder), 7, HEADER)
    for event in EVENTS:
        log.write(event)
        ledger.handle(event)
        log.mark(ledger.statistics())
    log.close()
    return folder / "ledger.7.msgpack"


def test_everything_that_was_heard_is_read_back_in_order(tmp_path: Path) -> None:
    header, records = read_ledger_log(write_log(tmp_path / "new"))
    assert header == HEADER
    assert list(records)[::2] == EVENTS


def test_a_fresh_ledger_comes_to_the_same(tmp_path: Path) -> None:
    outcome = replay_ledger_log(write_log(tmp_path))
    assert (outcome.events, outcome.marks, outcome.equal_marks) == (len(EVENTS), len(EVENTS), len(EVENTS))
    assert outcome.same and outcome.replayed["loads"] == 1 and outcome.replayed["failed"] == 1


def test_a_difference_is_seen(tmp_path: Path) -> None:
    """A log whose statistics are of another history."""
    ledger, log = HEADER.make(), LedgerLog.open(str(tmp_path), 1, HEADER)
    for event in EVENTS:
        log.write(event)
    log.mark(ledger.statistics())
    log.close()
    outcome = replay_ledger_log(tmp_path / "ledger.1.msgpack")
    assert not outcome.same and outcome.recorded["loads"] == 0 and outcome.replayed["loads"] == 1


def test_a_torn_last_message_is_left_out(tmp_path: Path) -> None:
    file = write_log(tmp_path)
    file.write_bytes(file.read_bytes()[:-3])
    assert replay_ledger_log(file).marks == len(EVENTS) - 1


def test_without_a_folder_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    log = LedgerLog.open("", 1, HEADER)
    log.write(EVENTS[0])
    log.mark(HEADER.make().statistics())
    log.close()
    assert not list(tmp_path.iterdir())


def test_what_is_no_log_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "ledger.1.msgpack"
    for content, complaint in (
        (b"", "does not begin"),
        (msgspec.msgpack.encode(EVENTS[0]), "does not begin"),
        (b"\xc1nonsense", "is no log"),
        (msgspec.msgpack.encode({"type": "Miss", "step": "x"}), "is no log"),
        (msgspec.msgpack.encode(msgspec.structs.replace(HEADER, version=99)), "version 99"),
        (msgspec.msgpack.encode(msgspec.structs.replace(HEADER, version=1)), "reads version 2. Record the run again"),
    ):
        file.write_bytes(content)
        with pytest.raises(UsageError, match=complaint):
            replay_ledger_log(file)
    with pytest.raises(UsageError, match="cannot be read"):
        replay_ledger_log(tmp_path / "missing")

"""`expertflow replay` from its words to its table, its JSON file and its exit code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from expertflow.errors import UsageError
from expertflow.runtime.command_line.registry import parse
from expertflow.tests.loader.test_ledger_log import HEADER, write_log
from expertflow.tests.runtime.replay.made import random_trace
from expertflow.workers.loader.ledger_log import LedgerLog
from expertflow.workers.traces.trace import write_npz


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    write_npz(random_trace(3, [20, 30, 25]), tmp_path / "trace.npz")
    return tmp_path / "trace.npz"


def rows_of(trace: Path, *words: str) -> list[dict[str, Any]]:
    """The rows of the JSON file."""
    file = trace.with_suffix(".json")
    assert parse(["replay", str(trace), "--json", str(file), *words]).run() == 0
    return msgspec.json.decode(file.read_bytes())["rows"]


def test_policies_and_bounds_side_by_side(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = rows_of(trace, "--slots", "3,50%", "--batch", "2", "--policies", "lru,lfu")
    assert [(row["policy"], row["slots"]) for row in rows] == [
        (name, slots) for slots in (9, 12) for name in ("lru", "lfu", "belady", "sch(16)")
    ]
    for row in rows:
        assert row["hits"] + row["loads"] == row["accesses"] and row["gap_to_belady"] >= 0
    assert rows[2]["gap_to_belady"] == 0
    told = capsys.readouterr().out.splitlines()
    lru = next(line for line in told if line.startswith("lru"))
    assert lru.split()[:3] == ["lru", "3", f"{100 * rows[0]['hit_rate']:.1f}"]
    assert not any("waits" in line or "useful" in line for line in told)


def test_a_link_makes_it_timed(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--slots", "4", "--policies", "lru", "--link-rate", "1MB", "--expert-bytes", "1kB", "--layer-ms", "2")
    slow, fast = rows_of(trace, *words)[0], rows_of(trace, *words, "--link-rate", "1GB")[0]
    assert slow["hits"] == fast["hits"] == rows_of(trace, *words[:4])[0]["hits"]
    assert slow["stall_s"] > 2 * fast["stall_s"] > 0 and slow["loaded_bytes"] == 1000 * slow["loads"]
    assert "waits" in capsys.readouterr().out
    hinted = rows_of(trace, *words, "--hints", "0.9,0.9", "--predictor", "table")[0]
    assert hinted["stall_s"] < slow["stall_s"] and hinted["useful"] > hinted["wasted"]


def test_counting_on_a_link_bounds_the_hinted_loads(trace: Path) -> None:
    words = ("--slots", "4", "--policies", "lru", "--hints", "0.9,0.9", "--expert-bytes", "1kB", "--layer-ms", "1")
    free = rows_of(trace, *words)[0]
    bound = rows_of(trace, *words, "--link-rate", "500kB", "--count")[0]
    assert 0 < bound["prefetches"] < free["prefetches"] and bound["hits"] < free["hits"]


@pytest.mark.parametrize(
    ("words", "where"),
    [
        (["--policies", "lruu"], "policies"),
        (["--slots", "99"], "slots"),
        (["--hints", "1"], "hints"),
        (["--hints", "2,1"], "hints (recall)"),
        (["--predictor", "table"], "predictor"),
        (["--link-rate", "1GB"], "layer_ms"),
        (["--link-rate", "1GB", "--layer-ms", "1"], "expert_bytes"),
        (["--batch", "-1"], "batch"),
        (["--json", "/no/such/folder/file"], "/no/such/folder/file"),
    ],
)
def test_what_makes_no_sense_is_refused(trace: Path, words: list[str], where: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse(["replay", str(trace), "--policies", "lru", *words]).run()
    assert refused.value.where == where and refused.value.remedy


def test_a_ledger_is_asked_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert parse(["replay", "--ledger-log", str(write_log(tmp_path))]).run() == 0
    assert "equal at 10 of 10 marks" in capsys.readouterr().out
    log = LedgerLog.open(str(tmp_path), 8, HEADER)
    log.mark(msgspec.structs.replace(HEADER.make().statistics(), loads=3))
    log.close()
    assert parse(["replay", "--ledger-log", str(tmp_path / "ledger.8.msgpack")]).run() == 1
    with pytest.raises(UsageError, match="no trace is given"):
        parse(["replay"]).run()

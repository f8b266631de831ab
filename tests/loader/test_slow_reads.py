"""Slow reads: noticed beside those before them, told in one line a while, and never when all are alike."""

from __future__ import annotations

import logging

import pytest
from expertflow.workers.loader.slow_reads import QUIET_NS, SLOW_NS, SlowReads
from expertflow.workers.loader.transfer.transfers import Transfer

MS = 1_000_000


def watch(slow: SlowReads, took_ns: int, now_ns: int = 0) -> None:
    slow.watch(Transfer(slot=0, layer=3, expert=7, left=0, started_ns=now_ns, ended_ns=now_ns + took_ns), now_ns)


def test_a_read_far_beyond_the_usual_is_told_once_in_a_while(caplog: pytest.LogCaptureFixture) -> None:
    slow = SlowReads()
    for _ in range(20):
        watch(slow, 4 * MS)
    watch(slow, 900 * MS)
    watch(slow, 950 * MS, now_ns=MS)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "expert 7 of MoE layer 3 took 900 ms, the median is 4.0 ms" in caplog.text
    watch(slow, 990 * MS, now_ns=QUIET_NS)
    assert "3 since the start" in caplog.text and len(caplog.records) == 2


@pytest.mark.parametrize("took_ns", [4 * MS, 2 * SLOW_NS])
def test_reads_that_are_all_alike_are_not_slow(took_ns: int, caplog: pytest.LogCaptureFixture) -> None:
    """Emulated links and slow disks take long for every expert: `doctor` says so, not each read."""
    slow = SlowReads()
    for _ in range(100):
        watch(slow, took_ns)
    assert not caplog.records


def test_the_first_reads_are_no_measure(caplog: pytest.LogCaptureFixture) -> None:
    slow = SlowReads()
    watch(slow, MS)
    watch(slow, 900 * MS)
    assert not caplog.records

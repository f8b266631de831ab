"""The loader without sockets: its ledger's actions reach reader threads, slots, compute, log and timeline."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from expertflow.errors import EngineError
from expertflow.ipc.messages import CopiesDone, Copy, Filled, Miss, Released, ResidentTable
from expertflow.runtime.replay.ledger_log import replay_ledger_log
from expertflow.tests.loader.arenas import fill, make_arena, payload
from expertflow.tests.loader.layouts import make_survey, write_random
from expertflow.workers.checkpoint.survey import Survey
from expertflow.workers.loader.drawing import Drawing
from expertflow.workers.loader.events import ComputeJoined
from expertflow.workers.loader.fills import DeviceSlots, SharedSlots
from expertflow.workers.loader.ledger_log import LedgerHeader, LedgerLog
from expertflow.workers.loader.runtime import LoaderRuntime

SLOTS, EXPERTS = 2, 4
HEADER = LedgerHeader(slots=SLOTS, layers=1, experts=EXPERTS, top_k=2, policy="lru")


class Loader:
    """A runtime with its ledger log, its timeline and what it sends."""

    def __init__(self, survey: Survey, slots: SharedSlots | DeviceSlots, folder: Path) -> None:
        self.sent: list[Any] = []
        self.spans: list[str] = []
        self.wakes: list[None] = []
        self.runtime = LoaderRuntime(
            survey,
            HEADER.make(explain=True),
            slots,
            2,
            self.sent.append,
            wake=lambda: self.wakes.append(None),
            log=LedgerLog.open(str(folder), 1, HEADER),
            drawing=Drawing(self._add_span, time.monotonic_ns, "slot"),
        )
        self.runtime.handle(ComputeJoined())
        self.runtime.handle(ResidentTable({}))

    def _add_span(self, name: str, start_ns: int, end_ns: int, lane: int, detail: dict[str, int | str]) -> None:
        self.spans.append(name)

    def take(self) -> list[Any]:
        sent = self.sent[:]
        self.sent.clear()
        return sent


@pytest.fixture
def survey(tmp_path: Path) -> Survey:
    (file,) = write_random(tmp_path, 20_000)
    return make_survey([file], [[500]], [[(0, 100 + 3000 * expert)] for expert in range(EXPERTS)], 1)


@pytest.fixture
def loaders() -> Iterator[list[Loader]]:
    opened: list[Loader] = []
    yield opened
    for loader in opened:
        loader.runtime.close()


def open_loader(loaders: list[Loader], survey: Survey, slots: SharedSlots | DeviceSlots, folder: Path) -> Loader:
    loaders.append(Loader(survey, slots, folder / "log"))
    return loaders[-1]


@pytest.mark.parametrize("from_store", [False, True])
def test_a_miss_is_filled_announced_and_counted(
    survey: Survey, loaders: list[Loader], tmp_path: Path, from_store: bool
) -> None:
    reference, memory = make_arena(EXPERTS * survey.stride_bytes), make_arena(SLOTS * survey.stride_bytes)
    fill(survey, {expert: (0, expert) for expert in range(EXPERTS)}, reference)
    loader = open_loader(loaders, survey, SharedSlots(memory, reference if from_store else None), tmp_path)
    loader.runtime.handle(Miss(0, 0, [2]))
    assert loader.take() == []
    loader.runtime.wait_for_transfer()
    [filled] = loader.take()
    assert isinstance(filled, Filled) and (filled.layer, filled.expert) == (0, 2)
    [part] = payload(survey, 0, 2)
    loaded = memory[filled.slot * survey.stride_bytes :][part]
    assert np.array_equal(loaded, reference[2 * survey.stride_bytes :][part])
    nothing_wrong = {"read_retries": 0, "checksum_mismatches": 0}
    assert loader.runtime.counters() == {"read_bytes": 1000, "bytes": 1000, **nothing_wrong}
    assert loader.wakes == [None]


def test_compute_hears_of_a_fill_before_prefetches_are_chosen(
    survey: Survey, loaders: list[Loader], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Choosing takes longer than anything else in the ledger, and compute may wait for this very expert."""
    loader = open_loader(loaders, survey, SharedSlots(make_arena(SLOTS * survey.stride_bytes)), tmp_path)
    loader.runtime.handle(Miss(0, 0, [2]))
    choose, sent_before = loader.runtime.ledger.prefetch, []
    monkeypatch.setattr(loader.runtime.ledger, "prefetch", lambda: sent_before.append(loader.sent[:]) or choose())
    loader.runtime.wait_for_transfer()
    assert [[type(message) for message in sent] for sent in sent_before] == [[Filled]]


def test_log_and_timeline_tell_all_that_happened(survey: Survey, loaders: list[Loader], tmp_path: Path) -> None:
    loader = open_loader(loaders, survey, SharedSlots(make_arena(SLOTS * survey.stride_bytes)), tmp_path)
    loader.runtime.handle(Miss(0, 0, [2, 3]))
    loader.runtime.wait_for_transfer()
    loader.runtime.wait_for_transfer()
    loader.runtime.handle(Released([0], 0, 0))
    assert loader.runtime.mark().evictions == 1
    loader.runtime.close()
    outcome = replay_ledger_log(tmp_path / "log" / "ledger.1.msgpack")
    assert (outcome.events, outcome.marks, outcome.same) == (6, 1, True)
    assert sorted(loader.spans) == ["evict", "load", "load", "miss", "miss"]


def test_hits_and_misses_of_the_store_before_a_device_are_counted(
    survey: Survey, loaders: list[Loader], tmp_path: Path
) -> None:
    loader = open_loader(loaders, survey, DeviceSlots(2, make_arena(2 * survey.stride_bytes)), tmp_path)
    for hits in (0, 1):
        loader.runtime.handle(Miss(hits, 0, [2]))
        if not hits:
            loader.runtime.wait_for_transfer()
        [copy] = loader.take()
        assert isinstance(copy, Copy) and copy.expert == 2
        loader.runtime.handle(CopiesDone([copy.number]))
        loader.runtime.handle(Released([copy.slot], hits, 0))
        assert loader.take() == [], "a copy announces its expert"
        counters = loader.runtime.counters()
        assert (counters["store_hits"], counters["store_misses"]) == (hits, 1)
        assert (counters["bytes"], counters["read_bytes"]) == (1000 * (hits + 1), 1000)
    assert loader.spans.count("copy") == 2


def test_copies_under_way_are_sent_again_to_a_new_compute_process(
    survey: Survey, loaders: list[Loader], tmp_path: Path
) -> None:
    """From a full store, which the loader does not even map."""
    loader = open_loader(loaders, survey, DeviceSlots(EXPERTS), tmp_path)
    loader.runtime.handle(Miss(0, 0, [1]))
    [first] = loader.take()
    loader.runtime.handle(ComputeJoined())
    again = loader.take()[0]
    assert (again.slot, again.expert) == (first.slot, 1) and again.number != first.number


def test_a_file_that_cannot_be_read_is_an_error(survey: Survey, loaders: list[Loader], tmp_path: Path) -> None:
    loader = open_loader(loaders, survey, SharedSlots(make_arena(SLOTS * survey.stride_bytes)), tmp_path)
    with open(survey.files[0], "rb+") as file:
        file.truncate(3000)
    loader.runtime.handle(Miss(0, 0, [2]))
    with pytest.raises(EngineError, match="cannot read expert 2 of MoE layer 0"):
        loader.runtime.wait_for_transfer()

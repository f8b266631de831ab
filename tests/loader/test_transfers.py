"""The transfer engine: urgent chunks first, one word for each transfer, errors handed over, nothing left behind."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import pytest
from expertflow.tests.loader.arenas import make_arena
from expertflow.workers.loader.transfer.expert_sources import Chunk
from expertflow.workers.loader.transfer.files import BounceBuffer
from expertflow.workers.loader.transfer.transfers import Transfer, TransferEngine

PATIENCE_S = 100.0


class Label(NamedTuple):
    """Which chunk ran."""

    expert: int
    chunk: int


class GatedSource:
    """Every expert has `count` chunks; each waits for a permit, so that a test decides when a chunk ends."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.began: queue.SimpleQueue[Label] = queue.SimpleQueue()
        self.permits = threading.Semaphore(0)
        self.failing: set[Label] = set()
        self.odd: set[Label] = set()
        self.closed = 0

    def chunks(self, memory: np.ndarray, base_bytes: int, layer: int, expert: int) -> list[Chunk]:
        return [self._chunk(Label(expert, number)) for number in range(self.count)]

    def close(self) -> None:
        self.closed += 1

    def _chunk(self, label: Label) -> Chunk:
        def run(bounce: BounceBuffer) -> None:
            self.began.put(label)
            if not self.permits.acquire(timeout=PATIENCE_S):
                raise TimeoutError
            if label in self.odd:
                raise ValueError("no such shape")
            if label in self.failing:
                raise OSError(f"chunk {label.chunk} is broken")

        return run


class Rig:
    """An engine over a gated source, with a clock that counts."""

    def __init__(self, chunks: int, threads: int = 1) -> None:
        self.source = GatedSource(chunks)
        self.done: queue.SimpleQueue[Transfer] = queue.SimpleQueue()
        ticks = iter(range(1, 10**6))
        self.engine = TransferEngine(self.source, make_arena(4096), 64, threads, self.done.put, lambda: next(ticks))

    def start(self, slot: int, urgent: bool = False) -> None:
        """Slot and expert have the same number."""
        self.engine.start(slot, 0, slot, urgent)

    def let_run(self, count: int) -> list[Label]:
        """Let the chunk that has begun and the following ones end; which they were."""
        labels = []
        for _ in range(count):
            labels.append(self.source.began.get(timeout=PATIENCE_S))
            self.source.permits.release()
        return labels

    def close(self) -> None:
        for _ in range(100):
            self.source.permits.release()
        self.engine.close()


@pytest.fixture
def rig() -> Iterator[Callable[..., Rig]]:
    made: list[Rig] = []

    def make(chunks: int, threads: int = 1) -> Rig:
        made.append(Rig(chunks, threads))
        return made[-1]

    yield make
    for each in made:
        each.close()


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("reader-")]


def test_transfers_run_in_the_order_they_were_started(rig: Callable[..., Rig]):
    one = rig(chunks=2)
    for slot in (3, 1, 2):
        one.start(slot)
    assert one.let_run(6) == [(3, 0), (3, 1), (1, 0), (1, 1), (2, 0), (2, 1)]


def test_an_urgent_transfer_overtakes_between_chunks(rig: Callable[..., Rig]):
    """A need waits for one chunk of a prefetch, not for the whole (R6)."""
    one = rig(chunks=3)
    one.start(1)
    assert one.source.began.get(timeout=PATIENCE_S) == (1, 0)
    one.start(2)
    one.start(9, urgent=True)
    one.source.permits.release()
    assert one.let_run(8) == [(9, 0), (9, 1), (9, 2), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2)]


def test_urgent_transfers_do_not_overtake_each_other(rig: Callable[..., Rig]):
    one = rig(chunks=2)
    one.start(1)
    one.source.began.get(timeout=PATIENCE_S)
    one.start(8, urgent=True)
    one.start(9, urgent=True)
    one.source.permits.release()
    assert one.let_run(4) == [(8, 0), (8, 1), (9, 0), (9, 1)]


def test_a_promoted_transfer_overtakes(rig: Callable[..., Rig]):
    """A need for an expert that is being prefetched, also when half of it is there."""
    one = rig(chunks=2)
    for slot in (1, 2, 3):
        one.start(slot)
    one.source.began.get(timeout=PATIENCE_S)
    one.engine.promote(3)
    one.source.permits.release()
    assert one.let_run(2) == [(3, 0), (3, 1)]
    assert one.let_run(1) == [(1, 1)]


def test_promoting_what_is_not_under_way_changes_nothing(rig: Callable[..., Rig]):
    """The transfer may have ended while the promotion was on its way."""
    one = rig(chunks=1)
    one.start(1)
    one.start(2)
    one.engine.promote(7)
    assert one.let_run(2) == [(1, 0), (2, 0)]


def test_done_is_said_once_after_the_last_chunk(rig: Callable[..., Rig]):
    one = rig(chunks=3, threads=2)
    one.start(5)
    one.let_run(2)
    assert one.source.began.get(timeout=PATIENCE_S) == (5, 2)
    assert one.done.empty()
    one.source.permits.release()
    transfer = one.done.get(timeout=PATIENCE_S)
    assert (transfer.slot, transfer.layer, transfer.expert, transfer.error) == (5, 0, 5, None)
    assert 0 < transfer.started_ns < transfer.ended_ns
    one.close()
    assert one.done.empty()


def test_a_transfer_begins_with_its_first_chunk_and_not_with_its_order(rig: Callable[..., Rig]):
    """Time in the queue is not time of reading: the timeline would show overlap that there was not."""
    one = rig(chunks=1)
    one.start(1)
    one.start(2)
    one.let_run(2)
    first, second = (one.done.get(timeout=PATIENCE_S) for _ in range(2))
    assert first.ended_ns < second.ended_ns
    assert second.started_ns > first.started_ns


@pytest.mark.parametrize("broken", [0, 1, 2])
def test_an_error_of_any_chunk_is_the_transfers(rig: Callable[..., Rig], broken: int):
    """Said when the others have ended: until then the slot is being written."""
    one = rig(chunks=3)
    one.source.failing.add(Label(4, broken))
    one.start(4)
    one.let_run(2)
    assert one.done.empty()
    one.let_run(1)
    assert str(one.done.get(timeout=PATIENCE_S).error) == f"chunk {broken} is broken"


def test_an_error_does_not_stop_the_reader(rig: Callable[..., Rig]):
    one = rig(chunks=1)
    one.source.failing.add(Label(1, 0))
    one.start(1)
    one.start(2)
    one.let_run(2)
    assert [one.done.get(timeout=PATIENCE_S).error is None for _ in range(2)] == [False, True]


def test_closing_while_busy_ends_the_chunks_in_progress_and_leaves_no_thread(rig: Callable[..., Rig]):
    one = rig(chunks=4, threads=2)
    mine = one.engine._threads
    one.start(1)
    one.start(2)
    began = {one.source.began.get(timeout=PATIENCE_S) for _ in range(2)}
    closing = threading.Thread(target=one.engine.close)
    closing.start()
    while not one.engine._closed:
        pass
    assert closing.is_alive()
    assert one.source.closed == 0
    one.source.permits.release(2)
    closing.join(PATIENCE_S)
    assert not closing.is_alive()
    assert not set(mine) & set(readers())
    assert began == {(1, 0), (1, 1)}
    assert one.source.began.empty()
    assert one.source.closed == 1


def test_closing_while_idle_leaves_no_thread(rig: Callable[..., Rig]):
    before = set(readers())
    one = rig(chunks=1, threads=3)
    assert len(set(readers()) - before) == 3
    one.engine.close()
    assert set(readers()) <= before


def test_whatever_a_chunk_raises_its_transfer_ends(rig: Callable[..., Rig]):
    """A reader that died instead would leave compute waiting for ever."""
    one = rig(chunks=1)
    one.source.odd.add(Label(1, 0))
    one.start(1)
    one.start(2)
    one.let_run(2)
    assert [str(one.done.get(timeout=PATIENCE_S).error) for _ in range(2)] == ["ValueError: no such shape", "None"]

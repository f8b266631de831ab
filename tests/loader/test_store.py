"""The host store holds every expert at its place, is filled a few experts at a time, and says how far it is."""

from __future__ import annotations

import os
import queue
import threading
from pathlib import Path

import numpy as np
import pytest
from expertflow.errors import EngineError
from expertflow.tests.loader.arenas import make_arena, payload
from expertflow.tests.loader.layouts import Place, make_survey, write_random
from expertflow.workers.checkpoint.survey import Survey
from expertflow.workers.loader.transfer.expert_sources import Chunk, FileSource
from expertflow.workers.loader.transfer.files import BounceBuffer
from expertflow.workers.loader.transfer.host_store import await_full, fill_store, notify_full

Progress = list[tuple[str, int, int]]


def make(folder: Path, experts: int) -> Survey:
    files = write_random(folder, 20_000, 20_000)
    places: list[list[Place]] = [[(number % 2, 31 * number), (0, 7 * number)] for number in range(experts)]
    return make_survey(files, [[40], [50]], places, 1)


def run(survey: Survey, source: object | None = None, threads: int = 2) -> tuple[np.ndarray, Progress]:
    store = make_arena(survey.expert_count * survey.stride_bytes)
    said: Progress = []
    fill_store(source or FileSource(survey), store, survey, threads, lambda *words: said.append(words))  # pyright: ignore
    return store, said


@pytest.mark.parametrize(("experts", "threads"), [(1, 4), (3, 1), (130, 2)])
def test_every_expert_lies_at_its_place(tmp_path: Path, experts: int, threads: int):
    """Also when there are fewer experts than transfers in flight."""
    survey = make(tmp_path, experts)
    store, _ = run(survey, threads=threads)
    for expert in range(experts):
        own = store[expert * survey.stride_bytes :]
        ours = [own[each].tobytes() for each in payload(survey, 0, expert)]
        for piece, (file, offset) in zip(survey.pieces, survey.place_table()[0, expert], strict=True):
            data = Path(survey.files[file]).read_bytes()
            assert ours[piece.tensor] == data[offset : offset + piece.source_bytes]


def test_progress_rises_to_the_whole(tmp_path: Path):
    survey = make(tmp_path, 130)
    _, said = run(survey)
    assert [done for _, done, _ in said] == [64, 128, 130]
    assert {total for _, _, total in said} == {130}


class CountingSource:
    """Counts how many experts are under way at once."""

    def __init__(self) -> None:
        self.under_way = self.most = 0
        self.ended: queue.SimpleQueue[int] = queue.SimpleQueue()

    def chunks(self, memory: np.ndarray, base_bytes: int, layer: int, expert: int) -> list[Chunk]:
        self.under_way += 1 - self._ended()
        self.most = max(self.most, self.under_way)

        def run(bounce: BounceBuffer) -> None:
            self.ended.put(expert)

        return [run]

    def _ended(self) -> int:
        count = 0
        while not self.ended.empty():
            self.ended.get()
            count += 1
        return count

    def close(self) -> None:
        """Nothing is open."""


def test_few_experts_are_under_way_at_once(tmp_path: Path):
    """The chunks of all experts of a big model would be millions of objects."""
    source = CountingSource()
    run(make(tmp_path, 200), source, threads=2)
    assert source.most <= 4


def test_a_broken_file_is_refused_with_the_expert_and_leaves_no_thread(tmp_path: Path):
    survey = make(tmp_path, 30)
    Path(survey.files[1]).write_bytes(b"short")
    with pytest.raises(EngineError, match="cannot read expert 1 of MoE layer 0") as caught:
        run(survey, threads=1)
    assert survey.files[1] in caught.value.what
    assert caught.value.remedy


def test_whoever_shares_a_store_waits_until_it_is_full():
    """Who goes on before copies what is not there yet; who comes later, a restarted loader, need not wait."""
    full_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    told: list[str] = []
    waiting = [threading.Thread(target=lambda: (await_full(full_fd), told.append("full"))) for _ in range(2)]
    for each in waiting:
        each.start()
    waiting[0].join(0.05)
    assert not told
    notify_full(full_fd)
    for each in waiting:
        each.join(10)
    await_full(full_fd)
    os.close(full_fd)
    assert told == ["full", "full"]


def test_a_store_of_ones_own_needs_no_word():
    notify_full(-1)
    await_full(-1)

"""Requests of the greatest length, in every row at once: prompt and output fill the model's context."""

from __future__ import annotations

from typing import Any

import pytest
from expertflow.ipc.messages import Finished, Refused
from expertflow.tests.scheduler.world import World, make_limits
from expertflow.workers.scheduler.limits import ComputeInfo

CONTEXT, ROWS, ROW_BYTES = 40, 4, 17
FACTS = ComputeInfo(kv_bytes_per_position=10, kv_bytes_per_row=ROW_BYTES, extending=True)
ENOUGH = ROWS * (CONTEXT * 10 + ROW_BYTES)
"""Memory that just holds a row of the whole context, for each row of the batch."""
KINDS: dict[str, dict[str, Any]] = {
    "plain": {}, "two units": {"units": "two"}, "in chunks": {"prefill_chunk": 7}, "shared": {"prefix_cache": True},
    "batch-invariant": {"batch_invariant": True},
}  # fmt: skip


def world_of(kind: str, kv_bytes: int, context: int = CONTEXT) -> World:
    return World(make_limits(batch_size=ROWS, kv_bytes=kv_bytes, prefill_tokens=16, **KINDS[kind]), FACTS, context)


def submit_all(world: World, prompt: int) -> None:
    """A request for each row and as many that wait; all may take far more tokens than the context has."""
    for number in range(2 * ROWS):
        world.submit([1 + (number + place) % 20 for place in range(prompt)], 10 * CONTEXT, eos_ids=[])


def most_running(world: World) -> int:
    """Run everything; return the most rows that ran at a time. The world checks memory after every event."""
    most = 0
    while world.open_requests:
        world.tick()
        most = max(most, world.core.statistics().running)
        world.compute_step()
    return most


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prompt", [1, CONTEXT // 2, CONTEXT - 1, CONTEXT])
def test_every_row_fills_the_context(kind: str, prompt: int) -> None:
    world = world_of(kind, ENOUGH)
    submit_all(world, prompt)
    running = most_running(world)
    if kind not in ("in chunks", "shared"):
        assert running == ROWS or prompt >= CONTEXT - 1, "memory holds all rows at once"
    for book in world.books.values():
        [end] = book.ends
        assert isinstance(end, Finished) and end.finish_reason == "length"
        assert end.token_ids == book.expected() and len(end.token_ids) == CONTEXT - prompt + 1


@pytest.mark.parametrize("kind", KINDS)
def test_with_a_byte_less_the_last_row_waits_and_all_are_answered(kind: str) -> None:
    world = world_of(kind, ENOUGH - 1)
    submit_all(world, CONTEXT // 2)
    assert most_running(world) == ROWS - 1
    assert all(isinstance(book.ends[0], Finished) for book in world.books.values())


@pytest.mark.parametrize("kind", KINDS)
def test_what_fits_the_memory_of_no_row_is_refused_at_once(kind: str) -> None:
    world = world_of(kind, ENOUGH // ROWS - 1)
    submit_all(world, CONTEXT // 2)
    for book in world.books.values():
        [end] = book.ends
        assert isinstance(end, Refused) and end.error.code == "budget" and str(ENOUGH // ROWS) in end.error.what
    shorter = world.submit([1] * (CONTEXT // 2), CONTEXT // 2, eos_ids=[])
    world.run_until_idle()
    assert isinstance(shorter.ends[0], Finished), "one position less is enough less"


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_beyond_the_context_is_refused_at_once(kind: str) -> None:
    world = world_of(kind, 10 * ENOUGH)
    book = world.submit([1] * (CONTEXT + 1), 1)
    [end] = book.ends
    assert isinstance(end, Refused) and end.error.code == "request" and str(CONTEXT) in end.error.what


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_the_whole_context_are_computed_again_after_a_death(kind: str) -> None:
    world = world_of(kind, ENOUGH)
    submit_all(world, CONTEXT // 2)
    for _ in range(CONTEXT // 2 + 5):
        world.tick()
        world.compute_step()
    world.kill_compute()
    world.start_compute()
    world.run_until_idle()
    assert all(book.ends[0].token_ids == book.expected() for book in world.books.values())  # type: ignore[union-attr]

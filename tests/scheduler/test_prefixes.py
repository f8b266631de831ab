"""Prefixes that rows share: computed once, kept while there is room, found by ids alone, never in a row's way."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from expertflow.ipc.messages import DropPrefix, KeepPrefix, RequestRow
from expertflow.tests.scheduler.fake_compute import FakeCompute
from expertflow.tests.scheduler.world import World, finished, make_limits
from expertflow.workers.scheduler import admission, prefixes
from expertflow.workers.scheduler.limits import ComputeInfo

SYSTEM = list(range(1, 21))
"""Ten blocks of two positions."""


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(prefixes, "BLOCK", 2)
    monkeypatch.setattr(admission, "MIN_SHARED", 8)
    yield


def make_world(kv_bytes: int = 10_000, copying: bool = True, prefill_chunk: int = 0) -> World:
    limits = make_limits(
        batch_size=4, prefill_tokens=200, kv_bytes=kv_bytes, prefill_chunk=prefill_chunk, prefix_cache=True
    )
    return World(limits, ComputeInfo(kv_bytes_per_position=10, copying=copying), context=100)


def compute_of(world: World) -> FakeCompute:
    assert world.compute is not None
    return world.compute


def admitted(world: World) -> list[list[RequestRow]]:
    return [ran.step.admit for ran in compute_of(world).ran if ran.step.admit]


def cached(world: World) -> list[list[int]]:
    """Positions that each row of each prefill takes from its prefix."""
    return [[row.cached for row in rows] for rows in admitted(world)]


def complete(world: World, *prompts: list[int], batch_invariant: bool = False) -> list[int]:
    """Run prompts that wait together; return how many of their tokens were cached."""
    books = [
        world.submit(prompt, max_new_tokens=2, eos_ids=[], batch_invariant=batch_invariant) for prompt in prompts
    ]
    world.run_until_idle()
    assert all(finished(book).token_ids == book.expected() for book in books)
    return [finished(book).cached_tokens for book in books]


def test_second_prompt_computes_only_what_is_its_own() -> None:
    world = make_world()
    assert complete(world, [*SYSTEM, 30, 31]) == [0]
    assert complete(world, [*SYSTEM, 40, 41]) == [20]
    ran = [len(ran.token_ids) for ran in compute_of(world).ran if ran.step.admit]
    assert ran == [22, 2]
    statistics = world.core.statistics()
    assert (statistics.prefix_queries, statistics.prefix_hits, statistics.prefix_tokens) == (2, 1, 20)


def test_rows_that_wait_together_let_one_of_them_compute_their_prefix() -> None:
    world = make_world()
    assert complete(world, *([*SYSTEM, 30 + n] for n in range(4))) == [0, 20, 20, 20]
    assert [len(rows) for rows in admitted(world)] == [1, 3]


def test_rows_with_little_in_common_do_not_wait() -> None:
    world = make_world()
    assert complete(world, *([1, 2, 3, 30 + n] for n in range(4))) == [0, 0, 0, 0]
    assert [len(rows) for rows in admitted(world)] == [4]


def test_same_prompt_again_computes_its_last_block() -> None:
    """A token at least must run, or there would be no logits to choose from."""
    world = make_world()
    assert complete(world, SYSTEM) == [0]
    assert complete(world, SYSTEM) == [18]


def test_conversation_finds_its_own_output() -> None:
    world = make_world()
    book = world.submit(SYSTEM, max_new_tokens=7, eos_ids=[])
    world.run_until_idle()
    assert complete(world, [*SYSTEM, *book.tokens, 33]) == [26]


def test_rows_of_one_prefill_run_the_same_columns() -> None:
    """The one with the longest rest says how many; the others compute some positions again."""
    world = make_world()
    complete(world, SYSTEM)
    complete(world, [*SYSTEM, 1], [2, 2, 2, 2, 2])
    assert cached(world)[-1] == [16, 0]


def test_rows_need_the_room_and_the_least_recently_used_prefix_goes() -> None:
    world = make_world(kv_bytes=400)
    complete(world, [1] * 10)
    complete(world, [2] * 10)
    complete(world, [1] * 12)
    complete(world, [3] * 16)  # reserves 17 of 40 positions, and keeps 16 more: of 22 kept ones 7 remain at most
    assert complete(world, [1] * 13) == [6]
    assert complete(world, [2] * 11) == [0]


def test_prefix_goes_from_its_end() -> None:
    """A block without those before it would be of no use to anybody."""
    world = make_world(kv_bytes=500)
    complete(world, [*SYSTEM, 5, 6])
    complete(world, [9] * 20)
    assert complete(world, [*SYSTEM, 7, 8]) == [8]


def test_without_room_for_a_copy_rows_are_prefilled_together() -> None:
    """Each would wait for the one before it, and find nothing."""
    world = make_world(kv_bytes=4 * 22 * 10)
    assert complete(world, *([*SYSTEM, 30 + n] for n in range(4))) == [0, 0, 0, 0]
    assert [len(rows) for rows in admitted(world)] == [4]


def test_death_of_compute_takes_the_prefixes_along() -> None:
    world = make_world()
    complete(world, [*SYSTEM, 30])
    world.kill_compute()
    world.start_compute()
    assert complete(world, [*SYSTEM, 31]) == [0]
    assert complete(world, [*SYSTEM, 32]) == [20]


def test_models_that_cannot_copy_keep_nothing() -> None:
    world = make_world(copying=False)
    assert complete(world, [*SYSTEM, 30], [*SYSTEM, 31]) == [0, 0]
    assert complete(world, [*SYSTEM, 32]) == [0]
    assert not compute_of(world).blocks


def test_long_prompt_begins_its_chunks_after_its_prefix() -> None:
    world = make_world(prefill_chunk=8)
    complete(world, SYSTEM)
    assert complete(world, [*SYSTEM, *range(40, 50)]) == [20]
    lengths = [len(ran.token_ids) for ran in compute_of(world).ran if ran.step.admit or ran.step.continues]
    assert lengths == [8, 8, 4, 8, 2]


def test_batch_invariant_rows_share_whole_chunks_among_themselves_alone() -> None:
    world = make_world(prefill_chunk=8)
    complete(world, [*SYSTEM, 30])
    assert complete(world, [*SYSTEM, 31], batch_invariant=True) == [0]
    assert complete(world, [*SYSTEM, 32], batch_invariant=True) == [16]
    assert complete(world, [*SYSTEM, 33]) == [20]


def test_row_waits_for_the_prefix_that_is_being_prefilled_in_chunks() -> None:
    world = make_world(prefill_chunk=8)
    books = [world.submit([*SYSTEM, 30], max_new_tokens=2, eos_ids=[])]
    world.tick()
    books.append(world.submit([*SYSTEM[:10], 31], max_new_tokens=2, eos_ids=[]))
    world.run_until_idle()
    assert [finished(book).cached_tokens for book in books] == [0, 10]


def test_failed_or_cancelled_row_leaves_no_prefix() -> None:
    world = make_world()
    book = world.submit(SYSTEM, max_new_tokens=2)
    world.tick()
    world.cancel(book)
    world.run_until_idle()
    assert complete(world, SYSTEM) == [0]


def test_messages_keep_before_a_row_leaves_and_drop_before_rows_come() -> None:
    world = make_world(kv_bytes=500)
    sent: list[object] = []
    receive = compute_of(world).receive
    compute_of(world).receive = lambda message: (sent.append(message), receive(message))[1]  # pyright: ignore[reportAttributeAccessIssue]
    complete(world, [1] * 20)
    complete(world, [2] * 40)
    kinds = [type(message) for message in sent]
    assert kinds.index(KeepPrefix) < kinds.index(DropPrefix)

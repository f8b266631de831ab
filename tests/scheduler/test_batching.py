"""Which rows run together, in which order, in how much memory."""

from __future__ import annotations

import sys

from expertflow.ipc.messages import StepSize
from expertflow.tests.scheduler.world import MS, World, finished, make_limits
from expertflow.workers.scheduler.limits import ComputeInfo


def test_requests_of_any_length_get_the_tokens_they_would_get_alone() -> None:
    """Batching, joining and dropping must not mix rows up."""
    world = World(make_limits(batch_size=3))
    books = [world.submit([i + 1] * (1 + i % 5), max_new_tokens=1 + i % 7, eos_ids=[]) for i in range(20)]
    world.run_until_idle()
    for book in books:
        assert (book.accepted, book.tokens) == (1, book.expected())
        assert finished(book).token_ids == book.tokens
        assert finished(book).finish_reason == "length"
    assert world.compute is not None and not world.compute.units, "units were left behind in compute"


def ran_together(batch_invariant: bool) -> int:
    """The most rows in one step of a model whose rows neither pad nor move."""
    facts = ComputeInfo(kv_bytes_per_position=10, padding=False, moving=False)
    world = World(make_limits(batch_size=4, batch_invariant=batch_invariant), facts)
    books = [world.submit([1] * (2 + number), 9 + number, eos_ids=[]) for number in range(6)]
    world.run_until_idle()
    assert [book.tokens for book in books] == [book.expected() for book in books]
    assert world.compute is not None
    return max(len(set(ran.rows)) for ran in world.compute.ran)


def test_batch_invariant_rows_of_any_length_share_units_whatever_the_model() -> None:
    """Each has a cache of its own, so none is padded."""
    assert ran_together(batch_invariant=False) == 1
    assert ran_together(batch_invariant=True) == 4


def test_no_padding_is_reserved_for_batch_invariant_rows() -> None:
    """The rows of the next test fit here: 300 and 30 bytes."""
    world = World(make_limits(kv_bytes=500, batch_invariant=True))
    long, short = world.submit([1] * 25, 6, eos_ids=[]), world.submit([2], 2, eos_ids=[])
    world.tick()
    assert world.admitted == [1, 2]
    world.run_until_idle()
    assert finished(long).finish_reason == finished(short).finish_reason == "length"


def test_kv_memory_is_reserved_for_padded_rows() -> None:
    """Two rows padded to the longer one do not fit 500 bytes: the second has to wait (mutant: no padding counted)."""
    world = World(make_limits(kv_bytes=500))
    long, short = world.submit([1] * 25, 6, eos_ids=[]), world.submit([2], 2, eos_ids=[])
    world.tick()
    assert world.admitted == [1]
    world.run_until_idle()
    assert finished(long).finish_reason == finished(short).finish_reason == "length"


def test_first_come_first_served_under_short_memory() -> None:
    """A small request must not overtake a large one for ever."""
    world = World(make_limits(kv_bytes=900, batch_size=4))
    for i in range(12):
        world.submit([1] * (40 if i % 3 == 0 else 3), 4, eos_ids=[])
    world.run_until_idle()
    assert world.admitted == sorted(world.admitted)


def test_a_burst_is_prefilled_together() -> None:
    """A pass over the weights for the first request alone would delay all others."""
    world = World(make_limits(batch_size=8, gather_ns=5 * MS))
    for _ in range(4):
        world.submit()
        world.tick(MS)
        assert not world.admitted
    assert world.core.wake_at_ns(world.now_ns) is not None
    world.tick(5 * MS)
    assert world.compute is not None and world.compute.run_next() is not None
    assert len(world.compute.ran[0].step.admit) == 4


def test_after_a_prefill_that_did_not_fit_the_device_others_are_smaller() -> None:
    world = World(make_limits(batch_size=8, prefill_tokens=64))
    books = [world.submit([1] * 8, 3, eos_ids=[]) for _ in range(12)]
    world.tick()
    assert world.compute is not None
    world.compute.at_most = StepSize(rows=2, positions=20)
    world.run_until_idle()
    assert [len(ran.step.admit) for ran in world.compute.ran if ran.step.admit][:3] == [8, 2, 2]
    assert all(finished(book).token_ids == book.tokens == book.expected() for book in books)


def test_after_a_decode_that_did_not_fit_the_device_fewer_rows_run() -> None:
    """Those that run go on; new ones wait until fewer do."""
    world = World(make_limits(batch_size=4))
    books = [world.submit([1 + i], 6, eos_ids=[]) for i in range(10)]
    world.tick()
    world.compute_step()
    assert world.compute is not None
    world.compute.at_most = StepSize(rows=2, positions=100)
    world.run_until_idle()
    decoded = [len(set(ran.rows)) for ran in world.compute.ran if not ran.step.admit]
    assert decoded[0] == 4 and max(decoded[6:]) == 2
    assert all(finished(book).token_ids == book.tokens == book.expected() for book in books)


def test_a_full_batch_does_not_wait_for_more() -> None:
    """Gathering is of no use when no further row fits."""
    world = World(make_limits(batch_size=2, gather_ns=5 * MS))
    world.submit()
    world.submit()
    world.tick()
    assert len(world.admitted) == 2


def test_a_steady_trickle_does_not_put_the_prefill_off() -> None:
    """Gathering ends after a while even if requests keep coming."""
    world = World(make_limits(batch_size=100, gather_ns=5 * MS))
    for _ in range(20):
        world.submit(max_new_tokens=1)
        world.tick(4 * MS)
    assert world.admitted


def test_decoding_goes_on_while_short_requests_pour_in() -> None:
    """Prefills come first, but must not starve a running row."""
    world = World(make_limits(batch_size=2))
    long = world.submit(max_new_tokens=6, eos_ids=[])
    for _ in range(60):
        world.submit(max_new_tokens=1)
        world.tick()
        world.compute_step()
    assert long.ends


def test_units_that_cannot_be_joined_take_turns() -> None:
    """A model without padding: equal lengths share a unit, the others step apart and finish all the same."""
    world = World(make_limits(batch_size=4), ComputeInfo(kv_bytes_per_position=10, padding=False))
    books = [world.submit([i] * (1 + i % 2), max_new_tokens=6, eos_ids=[]) for i in range(8)]
    world.run_until_idle()
    assert all(book.tokens == book.expected() for book in books)
    assert world.compute is not None
    assert any(len(ran.step.admit) > 1 for ran in world.compute.ran), "equal lengths were not grouped"


def test_memory_of_rows_that_cannot_be_moved_is_theirs_until_the_unit_ends() -> None:
    """Rows only leave by masking: what they hold is still held (the fake compute objects to one byte too much)."""
    facts = ComputeInfo(kv_bytes_per_position=10, kv_bytes_per_row=7, moving=False)
    world = World(make_limits(batch_size=4, kv_bytes=1000), facts)
    books = [world.submit([1] * (1 + 3 * i), max_new_tokens=12 - i, eos_ids=[]) for i in range(9)]
    world.run_until_idle()
    assert all(book.tokens == book.expected() for book in books)


def test_ten_thousand_waiting_requests_cost_a_step_nothing() -> None:
    """A scan of the queue in each step would show as quadratic work (counted, not timed)."""
    world = World(make_limits(batch_size=2, queue_limit=20_000), joined=False)
    for _ in range(10_000):
        world.submit(max_new_tokens=1)
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    world.start_compute()
    sys.setprofile(count)
    for _ in range(10):
        world.tick()
        world.compute_step()
    sys.setprofile(None)
    assert calls < 20_000

"""Long prompts in chunks: running rows go on, short prompts pass, and whatever happens in mid-prefill is survived."""

from __future__ import annotations

from expertflow.ipc.messages import RunStep, Sampling
from expertflow.tests.scheduler.fake_compute import FakeCompute
from expertflow.tests.scheduler.world import MS, World, finished, make_limits, refusal
from expertflow.workers.scheduler.limits import ComputeInfo

CHUNK = 5
LONG = list(range(1, 24))
"""Prompt of five chunks."""


def make_world(
    units: str = "one", extending: bool = True, prefill_chunk: int = CHUNK, batch_invariant: bool = False
) -> World:
    limits = make_limits(
        batch_size=4, units=units, prefill_chunk=prefill_chunk, batch_invariant=batch_invariant
    )
    return World(limits, ComputeInfo(kv_bytes_per_position=10, extending=extending))


def turn(world: World, times: int = 1) -> None:
    for _ in range(times):
        world.tick()
        world.compute_step()


def kinds(world: World) -> str:
    """What ran: (p)refill, (c)hunk after the first, (d)ecode."""
    assert world.compute is not None
    return "".join(_kind(ran.step) for ran in world.compute.ran)


def _kind(step: RunStep) -> str:
    return "p" if step.admit else "c" if step.continues else "d"


def last_compute(world: World) -> FakeCompute:
    assert world.compute is not None
    return world.compute


def chunk_in_flight(compute: FakeCompute, number: int) -> bool:
    """Whether a chunk of this row, not its first, waits to be run."""
    steps = [order for order in compute.orders if isinstance(order, RunStep) and order.continues]
    return any(row.number == number for step in steps for row in compute.units[step.unit].rows)


def test_rows_decode_between_any_two_chunks_of_a_prompt() -> None:
    world = make_world()
    world.submit([1, 2], max_new_tokens=12, eos_ids=[])
    turn(world, 3)
    book = world.submit(LONG, max_new_tokens=2, eos_ids=[])
    world.run_until_idle()
    assert kinds(world).startswith("pddpdcdcdcdcd")
    assert finished(book).token_ids == book.expected()


def test_two_units_both_decode_between_two_chunks() -> None:
    world = make_world(units="two")
    for number in range(2):
        world.submit([1, 2, number], max_new_tokens=14, eos_ids=[])
    turn(world, 6)
    world.submit(LONG, max_new_tokens=2, eos_ids=[])
    world.run_until_idle()
    after = kinds(world)[kinds(world).index("p", 1) :]
    assert after.startswith("pddcddcddcddcdd"), after


def test_prompt_alone_runs_its_chunks_one_after_the_other() -> None:
    world = make_world()
    book = world.submit(LONG, max_new_tokens=3, eos_ids=[])
    world.run_until_idle()
    assert kinds(world) == "pccccdd"
    assert [len(ran.token_ids) for ran in last_compute(world).ran[:5]] == [5, 5, 5, 5, 3]
    assert finished(book).token_ids == book.expected()


def test_short_prompt_passes_a_long_one() -> None:
    world = make_world()
    long = world.submit(LONG, max_new_tokens=2, eos_ids=[], identity=b"a")
    turn(world)
    short = world.submit([3, 4], max_new_tokens=1, eos_ids=[], identity=b"b")
    turn(world, 3)
    assert finished(short).token_ids == short.expected()
    assert not long.ends and not long.tokens
    world.run_until_idle()


def test_second_long_prompt_waits_for_the_first() -> None:
    world = make_world()
    for _ in range(2):
        world.submit(LONG, max_new_tokens=1, eos_ids=[])
    world.run_until_idle()
    assert kinds(world) == "pccccpcccc"


def test_model_that_cannot_extend_its_cache_and_chunk_zero_prefill_whole() -> None:
    for world in (make_world(extending=False), make_world(prefill_chunk=0)):
        world.submit(LONG, max_new_tokens=2, eos_ids=[])
        world.run_until_idle()
        assert kinds(world) == "pd"


def test_cancel_and_deadline_in_mid_prefill_free_the_row() -> None:
    for deadline in (None, 1):
        world = make_world()
        book = world.submit(LONG, max_new_tokens=2, deadline_ms=deadline)
        turn(world, 2)
        if deadline is None:
            world.cancel(book)
        else:
            world.tick(2 * MS)
        world.run_until_idle()
        assert finished(book).finish_reason in ("cancelled", "deadline")
        assert not last_compute(world).units
        assert len(kinds(world)) <= 3


def test_death_in_mid_prefill_begins_the_prompt_again() -> None:
    world = make_world()
    book = world.submit(LONG, max_new_tokens=2, eos_ids=[])
    turn(world, 3)
    world.kill_compute()
    world.start_compute()
    world.run_until_idle()
    assert kinds(world) == "pccccd"
    assert finished(book).token_ids == book.expected()
    assert finished(book).timings.recomputed == 1


def test_prompt_on_which_compute_dies_is_refused_whatever_chunk_it_is() -> None:
    """Its chunks run with nothing else in flight, so that it alone is blamed."""
    world = make_world()
    other = world.submit([1, 2], max_new_tokens=20, eos_ids=[])
    turn(world, 2)
    book = world.submit(LONG, max_new_tokens=2, eos_ids=[])
    for _ in range(3):
        world.tick()
        while not chunk_in_flight(last_compute(world), book.number):
            world.compute_step()
            world.tick()
        world.kill_compute()
        world.start_compute()
    world.run_until_idle()
    assert "died 3 times" in refusal(book).what
    assert finished(other).token_ids == other.expected()


def test_row_that_breaks_in_mid_prefill_fails_alone() -> None:
    world = make_world()
    other = world.submit([1, 2], max_new_tokens=9, eos_ids=[])
    turn(world, 2)
    book = world.submit(LONG, max_new_tokens=2, eos_ids=[])
    turn(world, 3)
    last_compute(world).fail_rows.add(book.number)
    world.run_until_idle()
    assert refusal(book).what == "its row broke"
    assert finished(other).token_ids == other.expected()


def test_batch_invariant_row_that_has_output_takes_it_along_in_its_last_chunk() -> None:
    """It decodes again what it had, token by token, in the last chunk's step: so its bits are those from before."""
    world = make_world(batch_invariant=True)
    book = world.submit(LONG, max_new_tokens=8, eos_ids=[], sampling=Sampling(seed=2))
    turn(world, 8)
    made = len(book.tokens)
    world.kill_compute()
    world.start_compute()
    world.run_until_idle()
    assert [len(ran.token_ids) for ran in last_compute(world).ran[:5]] == [5, 5, 5, 5, 3 + made]
    assert finished(book).token_ids == book.expected()

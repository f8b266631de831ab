"""Deaths of compute, broken rows, restarts."""

from __future__ import annotations

from expertflow.ipc.messages import Sampling
from expertflow.tests.scheduler.world import World, finished, make_limits, refusal
from expertflow.workers.scheduler import events
from expertflow.workers.scheduler.state import SchedulerState


def test_after_computes_death_sequences_go_on_where_they_were() -> None:
    """Delivered tokens stay, positions and sampling continue, old answers are not believed."""
    world = World(make_limits(batch_size=3))
    books = [world.submit([i], max_new_tokens=8, eos_ids=[], sampling=Sampling(seed=i)) for i in range(5)]
    for _ in range(4):
        world.tick()
        world.compute_step()
    old = world.compute
    world.tick()
    world.kill_compute()
    world.tick()
    world.start_compute()
    world.tick()
    stale = old.run_next() if old else None
    assert stale is not None
    world.do(events.StepDone(stale, world.now_ns))
    world.run_until_idle()
    assert all(book.tokens == book.expected() for book in books)
    assert [finished(book).timings.recomputed for book in books] == [1, 1, 1, 0, 0]
    assert world.core.statistics().stale_steps == 1


def test_while_compute_is_down_its_rows_wait_and_no_step_is_sent() -> None:
    """Steps for a dead process would count as running, and be run again all the same."""
    world = World(make_limits(batch_size=3))
    books = [world.submit([i], max_new_tokens=8, eos_ids=[]) for i in range(5)]
    world.tick()
    world.compute_step()
    world.tick()
    world.kill_compute()
    late = world.submit([9], max_new_tokens=3, eos_ids=[])
    assert not [each for each in world.core.handle(events.Tick(world.now_ns)) if isinstance(each, events.ToCompute)]
    facts = world.core.statistics()
    assert (facts.queue, facts.running, facts.steps_in_flight, facts.units) == (6, 0, 0, 0)
    world.start_compute()
    world.run_until_idle()
    assert all(book.tokens == book.expected() for book in [*books, late])


def test_a_death_that_nobody_announced() -> None:
    """The successor's start is all the scheduler hears of it."""
    world = World()
    book = world.submit(max_new_tokens=8, eos_ids=[])
    world.tick()
    world.compute_step()
    world.tick()
    world.kill_compute(announced=False)
    world.start_compute()
    world.run_until_idle()
    assert book.tokens == book.expected()


def test_recomputed_rows_go_before_those_that_never_ran() -> None:
    """The old order holds after a death (mutant: put back at the end)."""
    world = World(make_limits(batch_size=2))
    books = [world.submit([i], max_new_tokens=30, eos_ids=[]) for i in range(4)]
    world.tick()
    world.compute_step()
    world.tick()
    world.kill_compute()
    world.start_compute()
    world.run_until_idle()
    ends = [finished(book).timings.total_ns for book in books]
    assert ends == sorted(ends)


def test_a_request_that_kills_compute_fails_alone() -> None:
    """Tried alone after the first death, refused after the third; the others finish."""
    world = World(make_limits(batch_size=4))
    books = [world.submit([i], max_new_tokens=6, eos_ids=[]) for i in range(4)]
    poison, deaths = 2, 0
    for _ in range(200):
        world.tick()
        order = next(iter(world.compute.orders), None) if world.compute else None
        rows = [row.number for row in getattr(order, "admit", [])]
        if poison in rows:
            deaths += 1
            world.kill_compute(announced=False)
            world.start_compute()
        world.compute_step()
    assert deaths == 3
    assert "died" in refusal(books[1]).what
    assert all(book.tokens == book.expected() for book in books if book is not books[1])


def test_a_row_that_breaks_its_step_fails_alone() -> None:
    """The error of one row is its request's end and nobody else's."""
    world = World()
    books = [world.submit([i], max_new_tokens=6, eos_ids=[]) for i in range(3)]
    world.tick()
    world.compute_step()
    assert world.compute is not None
    world.compute.fail_rows.add(2)
    world.run_until_idle()
    assert refusal(books[1]).what == "its row broke"
    assert books[0].tokens == books[0].expected() and books[2].tokens == books[2].expected()


def test_numbers_grow_across_restarts_of_the_scheduler() -> None:
    """Compute and predictor tell the steps of an old scheduler from those of a new one."""
    world = World(joined=False)
    world.epoch = 3
    world.core = SchedulerState(world.model, world.limits, epoch=world.epoch)
    world.start_compute()
    world.submit(max_new_tokens=2)
    world.run_until_idle()
    assert min(world.forecasts) > 3 << 32 and min(world.admitted) > 3 << 32

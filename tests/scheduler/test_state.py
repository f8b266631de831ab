"""The scheduler's core, one story a test."""

from __future__ import annotations

import math

import pytest
from expertflow.ipc.messages import Cancel, ErrorFacts, Finished, Hello, Refused, Sampling
from expertflow.tests.scheduler.fake_compute import FakeCompute, continuation
from expertflow.tests.scheduler.world import EOS, MS, Book, World, make_limits
from expertflow.workers.scheduler import events
from expertflow.workers.scheduler.facts import ComputeFacts


def finished(book: Book) -> Finished:
    assert len(book.ends) == 1
    assert isinstance(book.ends[0], Finished), book.ends
    return book.ends[0]


def refusal(book: Book) -> ErrorFacts:
    assert len(book.ends) == 1
    assert isinstance(book.ends[0], Refused), book.ends
    return book.ends[0].error


def held_rows(compute: FakeCompute) -> list[int]:
    return sorted(row.number for unit in compute.units.values() for row in unit.rows)


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


def test_stop_ids_end_a_request_and_are_part_of_it() -> None:
    """The end-of-sequence id must end the output, as in transformers' generate."""
    world = World()
    tokens = continuation([1, 2, 3], 8, Sampling())
    stop = next(i for i in range(1, 8) if tokens[i] not in tokens[:i])
    book = world.submit(max_new_tokens=8, eos_ids=[tokens[stop]])
    world.run_until_idle()
    assert finished(book).finish_reason == "stop"
    assert book.tokens == tokens[: stop + 1]


def test_the_models_own_stop_ids_are_the_default() -> None:
    """Without eos_ids a request would run past the model's end of sequence."""
    world = World()
    prompt = next([1, i] for i in range(50) if EOS in continuation([1, i], 20, Sampling()))
    book = world.submit(prompt, max_new_tokens=20)
    world.run_until_idle()
    assert finished(book).finish_reason == "stop" and book.tokens[-1] == EOS


def test_output_ends_where_the_context_ends() -> None:
    """Positions past the context do not exist: a prompt that fills it still gets the one token after it."""
    world = World(context=8)
    books = [world.submit([1] * length, max_new_tokens=100, eos_ids=[]) for length in (6, 8)]
    world.run_until_idle()
    assert [len(finished(book).token_ids) for book in books] == [3, 1]
    assert all(finished(book).finish_reason == "length" for book in books)


@pytest.mark.parametrize(
    ("wrong", "where"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": [1, 50]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [1] * 65}, "prompt"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"deadline_ms": 0}, "deadline"),
        ({"sampling": Sampling(temperature=math.nan)}, "temperature"),
        ({"sampling": Sampling(temperature=math.inf)}, "temperature"),
        ({"sampling": Sampling(temperature=-0.1)}, "temperature"),
        ({"sampling": Sampling(top_p=0.0)}, "top_p"),
        ({"sampling": Sampling(top_p=1.1)}, "top_p"),
        ({"sampling": Sampling(top_p=math.nan)}, "top_p"),
        ({"sampling": Sampling(top_k=-1)}, "top_k"),
        ({"sampling": Sampling(seed=-1)}, "seed"),
        ({"sampling": Sampling(seed=2**63)}, "seed"),
        ({"request_id": "x" * 201}, "request_id"),
        ({"resume_ids": [1] * 6}, "resume_ids"),
        ({"resume_ids": [50]}, "resume_ids"),
    ],
)
def test_a_request_that_cannot_be_run_is_refused_alone(wrong: dict[str, object], where: str) -> None:
    """It must name what is wrong and leave others undisturbed."""
    world = World()
    good = world.submit()
    bad = world.submit(**wrong)  # type: ignore[arg-type]
    world.run_until_idle()
    assert bad.accepted == 0
    assert (refusal(bad).code, refusal(bad).where) == ("request", where)
    assert refusal(bad).remedy
    assert good.tokens == good.expected()


def test_a_sequence_larger_than_the_kv_budget_is_refused_with_the_numbers() -> None:
    """It could never be admitted: waiting for room would be a hang."""
    world = World(make_limits(kv_bytes=500))
    too_long, fits = world.submit([1] * 40, max_new_tokens=12), world.submit([1] * 40, max_new_tokens=11, eos_ids=[])
    world.run_until_idle()
    assert refusal(too_long).code == "budget"
    assert "510" in refusal(too_long).what and "500" in refusal(too_long).what
    assert len(finished(fits).token_ids) == 11


def test_what_no_longer_fits_a_restarted_compute_is_refused() -> None:
    """New facts may rule out a waiting request, which must then end and not wait for ever."""
    world = World(make_limits(kv_bytes=500))
    book = world.submit([1] * 20, max_new_tokens=5)
    world.facts = ComputeFacts(kv_bytes_per_position=100)
    world.start_compute()
    assert refusal(book).code == "budget"


def test_a_full_queue_says_busy_with_the_limit() -> None:
    """A flood must not grow the scheduler's memory."""
    world = World(make_limits(queue_limit=3), joined=False)
    books = [world.submit() for _ in range(5)]
    assert [len(book.ends) for book in books] == [0, 0, 0, 1, 1]
    assert refusal(books[4]).code == "busy" and "3" in refusal(books[4]).what


def test_hello_is_answered_with_the_facts() -> None:
    """A client finds tokenizer and limits by it."""
    world = World()
    world.do(events.Heard(b"a", Hello(), 1))
    assert (world.welcomes[0].model, world.welcomes[0].context) == ("/models/fake", 64)


def test_garbage_is_answered() -> None:
    """A foreign client must hear why nothing happens."""
    world = World()
    world.do(events.Unreadable(b"a", "", "expected `int`"))
    assert "expected `int`" in world.strays[0].error.what


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


def test_a_full_batch_does_not_wait_for_more() -> None:
    """Gathering is of no use when no further row fits."""
    world = World(make_limits(batch_size=2, gather_ns=5 * MS))
    world.submit(), world.submit()
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


def test_deadline_gives_what_there_is() -> None:
    """A request past its deadline must stop costing steps, and keep its tokens."""
    world = World()
    waiting_for = world.submit(max_new_tokens=50, eos_ids=[], deadline_ms=10)
    for _ in range(3):
        world.tick()
        world.compute_step()
    assert world.core.wake_at_ns(world.now_ns) is not None
    world.tick(10 * MS)
    end = finished(waiting_for)
    assert (end.finish_reason, end.token_ids) == ("deadline", waiting_for.expected()[:3])
    assert end.timings.total_ns >= 10 * MS
    world.run_until_idle()
    assert world.compute is not None and not world.compute.units


def test_a_deadline_holds_for_waiting_requests_too() -> None:
    """While compute is down, deadlines go on."""
    world = World(joined=False)
    book = world.submit(deadline_ms=1)
    world.tick(2 * MS)
    assert finished(book).finish_reason == "deadline"


def test_cancel_while_waiting_and_while_a_step_runs() -> None:
    """The token of the step in flight must not be delivered after the end."""
    world = World(make_limits(batch_size=1))
    running, waiting, last = (world.submit(max_new_tokens=9, eos_ids=[]) for _ in range(3))
    world.tick()
    world.compute_step()
    world.tick()
    world.cancel(running)
    world.cancel(waiting)
    world.run_until_idle()
    assert finished(running).token_ids == running.expected()[:1]
    assert finished(waiting).token_ids == []
    assert last.tokens == last.expected()


def test_cancel_of_the_unknown_and_of_others_requests() -> None:
    """Another client's work is not touched, and a request that was refused does not end twice."""
    world = World()
    book, refused = world.submit(), world.submit([])
    world.do(events.Heard(b"b", Cancel(book.submit.request_id), 1))
    world.cancel(refused)
    assert len(refused.ends) == 1
    world.run_until_idle()
    assert book.tokens == book.expected()


def test_submitted_again_it_runs_once_and_everything_is_said_again() -> None:
    """After a reconnect, under a new identity, in the middle and after the end."""
    world = World()
    book = world.submit(max_new_tokens=6, eos_ids=[])
    for _ in range(3):
        world.tick()
        world.compute_step()
    world.submit_again(book, identity=b"b")
    world.lose_client(b"a")
    world.run_until_idle()
    assert book.tokens == book.expected()
    book.ends.clear()
    world.submit_again(book, identity=b"c")
    assert finished(book).token_ids == book.expected()
    assert world.core.statistics().accepted == 1


def test_the_same_id_for_another_request_is_refused() -> None:
    """Two requests must not be taken for one."""
    world = World()
    first = world.submit(request_id="x", eos_ids=[])
    second = world.submit([9], request_id="x")
    assert refusal(second).where == "request_id"
    world.books["x"] = first
    world.run_until_idle()
    assert finished(first).token_ids == first.expected()


def test_resumed_output_is_kept_and_continued() -> None:
    """After the scheduler's death a client brings what was delivered: it must neither change nor be made again."""
    world = World()
    expected = continuation([1, 2, 3], 6, Sampling(seed=5))
    book = world.submit(max_new_tokens=6, eos_ids=[], sampling=Sampling(seed=5), resume_ids=expected[:4])
    world.run_until_idle()
    assert finished(book).token_ids == expected
    assert world.core.statistics().tokens == 2


def test_resumed_with_its_whole_output_it_ends_at_once() -> None:
    """Nothing is left to run; running it would add a token."""
    world = World()
    book = world.submit(max_new_tokens=2, eos_ids=[], resume_ids=[3, 4])
    assert finished(book).token_ids == [3, 4]
    world.run_until_idle()
    assert not world.admitted


def test_a_vanished_client_costs_no_more_steps() -> None:
    """Abandoned work is cancelled, the work of others is not."""
    world = World(make_limits(batch_size=2))
    gone = [world.submit(max_new_tokens=60, eos_ids=[]) for _ in range(3)]
    other = world.submit(identity=b"b")
    world.tick()
    world.lose_client(b"a")
    world.run_until_idle()
    assert other.tokens == other.expected()
    assert not any(book.ends for book in gone)
    assert world.core.statistics().steps < 20


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


def test_a_death_that_nobody_announced() -> None:
    """The successor's start is all the scheduler hears of it."""
    world = World()
    book = world.submit(max_new_tokens=8, eos_ids=[])
    world.tick(), world.compute_step(), world.tick()
    world.kill_compute(announced=False)
    world.start_compute()
    world.run_until_idle()
    assert book.tokens == book.expected()


def test_recomputed_rows_go_before_those_that_never_ran() -> None:
    """The old order holds after a death (mutant: put back at the end)."""
    world = World(make_limits(batch_size=2))
    books = [world.submit([i], max_new_tokens=30, eos_ids=[]) for i in range(4)]
    world.tick(), world.compute_step(), world.tick()
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
    world.tick(), world.compute_step()
    assert world.compute is not None
    world.compute.fail_rows.add(2)
    world.run_until_idle()
    assert refusal(books[1]).what == "its row broke"
    assert books[0].tokens == books[0].expected() and books[2].tokens == books[2].expected()


def test_draining_ends_everything_with_an_error() -> None:
    """Whoever waits for an engine that stops must hear of it, and so must who comes too late."""
    world = World(make_limits(batch_size=1))
    books = [world.submit(max_new_tokens=40, eos_ids=[]) for _ in range(2)]
    world.tick(), world.compute_step()
    world.do(events.Draining(world.now_ns))
    late = world.submit()
    assert [refusal(book).code for book in (*books, late)] == ["engine"] * 3
    assert world.core.idle


def test_numbers_grow_across_restarts_of_the_scheduler() -> None:
    """Compute and predictor tell the steps of an old scheduler from those of a new one."""
    from expertflow.workers.scheduler.state import SchedulerState

    world = World(joined=False)
    world.core = SchedulerState(world.model, world.limits, epoch=3)
    world.start_compute()
    world.submit(max_new_tokens=2)
    world.run_until_idle()
    assert min(world.forecasts) > 3 << 32 and min(world.admitted) > 3 << 32


def test_units_that_cannot_be_joined_take_turns() -> None:
    """A model without padding: equal lengths share a unit, the others step apart and finish all the same."""
    world = World(make_limits(batch_size=4), ComputeFacts(kv_bytes_per_position=10, padding=False))
    books = [world.submit([i] * (1 + i % 2), max_new_tokens=6, eos_ids=[]) for i in range(8)]
    world.run_until_idle()
    assert all(book.tokens == book.expected() for book in books)
    assert world.compute is not None
    assert any(len(ran.step.admit) > 1 for ran in world.compute.ran), "equal lengths were not grouped"


def test_memory_of_rows_that_cannot_be_moved_is_theirs_until_the_unit_ends() -> None:
    """Rows only leave by masking: what they hold is still held (the fake compute objects to one byte too much)."""
    facts = ComputeFacts(kv_bytes_per_position=10, kv_bytes_per_row=7, moving=False)
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

    import sys

    world.start_compute()
    sys.setprofile(count)
    for _ in range(10):
        world.tick()
        world.compute_step()
    sys.setprofile(None)
    assert calls < 20_000

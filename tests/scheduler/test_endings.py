"""How requests end, and what happens when they are submitted again."""

from __future__ import annotations

from expertflow.ipc.messages import Cancel, Details, Sampling
from expertflow.tests.scheduler.fake_compute import continuation
from expertflow.tests.scheduler.world import EOS, MS, World, finished, make_limits
from expertflow.workers.scheduler import events


def test_stop_ids_end_a_request_and_are_part_of_it() -> None:
    """The end-of-sequence id must end the output, as in transformers' generate."""
    world = World()
    tokens = continuation([1, 2, 3], 8, Sampling())
    stop = next(i for i in range(1, 8) if tokens[i] not in tokens[:i])
    book = world.submit(max_new_tokens=8, eos_ids=[tokens[stop]])
    world.run_until_idle()
    more = world.submit(max_new_tokens=8, eos_ids=[], stop_ids=[tokens[stop]])
    world.run_until_idle()
    for ended in (book, more):
        assert finished(ended).finish_reason == "stop"
        assert ended.tokens == tokens[: stop + 1]


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
    world.do(events.ClientMessage(b"b", Cancel(book.submit.request_id), 1))
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


def test_what_a_lost_connection_still_carried_does_not_take_the_answers_away() -> None:
    """The client has connected and submitted again, and only then arrives what it had sent before."""
    world = World()
    book = world.submit(max_new_tokens=6, eos_ids=[])
    world.submit_again(book, identity=b"b", origin="session", attempt=2)
    world.tick()
    world.compute_step()
    world.deliver_late(b"a", book, origin="session", attempt=1)
    world.lose_client(b"a")
    world.run_until_idle()
    assert finished(book).token_ids == book.expected()


def test_another_session_with_the_same_request_gets_the_answers() -> None:
    """A client that died had connected more often than the one that takes its work over."""
    world = World()
    book = world.submit(max_new_tokens=6, eos_ids=[])
    world.submit_again(book, identity=b"b", origin="first", attempt=9)
    world.submit_again(book, identity=b"c", origin="second", attempt=0)
    world.lose_client(b"b")
    world.run_until_idle()
    assert finished(book).token_ids == book.expected()


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


def test_a_whole_output_runs_once_more_for_details_that_are_missing() -> None:
    """Its scheduler died before the end was told. This one fills the context: its last token has no position."""
    world = World(context=8)
    expected = continuation([1, 2, 3], 6, Sampling())
    book = world.submit(max_new_tokens=6, eos_ids=[], resume_ids=expected, details=Details(0, 0, routed_experts=True))
    world.run_until_idle()
    end = finished(book)
    assert (end.token_ids, end.logprobs, end.finish_reason) == (expected, [], "length")
    assert world.compute is not None
    assert [row.token_ids for ran in world.compute.ran for row in ran.step.admit] == [[1, 2, 3, *expected[:-1]]]


def test_a_prompt_is_scored_without_output() -> None:
    """Also while others generate; its one step gives a token that nobody asked for."""
    world = World()
    scored = world.submit([1, 2, 3, 4], max_new_tokens=0, details=Details(prompt_logprobs=0, routed_experts=True))
    other = world.submit(max_new_tokens=3, eos_ids=[])
    world.run_until_idle()
    assert (finished(scored).token_ids, finished(scored).finish_reason) == ([], "length")
    assert finished(scored).prompt_logprobs is not None and other.tokens == other.expected()


def test_a_prompt_that_was_scored_is_not_scored_again() -> None:
    """A death of compute loses no logprobs: scoring a long prompt twice would be a waste."""
    world = World()
    book = world.submit(max_new_tokens=6, eos_ids=[], details=Details(1, 1))
    for _ in range(3):
        world.tick()
        world.compute_step()
    world.kill_compute()
    world.start_compute()
    world.run_until_idle()
    assert world.compute is not None and world.compute.ran[0].step.admit[0].details == Details(logprobs=1)
    assert finished(book).token_ids == book.expected()

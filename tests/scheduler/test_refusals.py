"""What the scheduler refuses, and how it says so."""

from __future__ import annotations

import math

import pytest
from expertflow.ipc.messages import Details, Hello, Sampling
from expertflow.tests.scheduler.world import World, finished, make_limits, refusal
from expertflow.workers.scheduler import events
from expertflow.workers.scheduler.limits import ComputeInfo


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
        ({"sampling": Sampling(first_token=50)}, "first_token"),
        ({"sampling": Sampling(first_token=-1)}, "first_token"),
        ({"sampling": Sampling(min_p=-0.1)}, "min_p"),
        ({"sampling": Sampling(min_p=1.1)}, "min_p"),
        ({"sampling": Sampling(min_p=math.nan)}, "min_p"),
        ({"sampling": Sampling(repetition_penalty=0.0)}, "repetition_penalty"),
        ({"sampling": Sampling(repetition_penalty=math.inf)}, "repetition_penalty"),
        ({"sampling": Sampling(presence_penalty=2.1)}, "presence_penalty"),
        ({"sampling": Sampling(frequency_penalty=math.nan)}, "frequency_penalty"),
        ({"sampling": Sampling(logit_bias={3: 101.0})}, "logit_bias"),
        ({"sampling": Sampling(logit_bias={3: math.nan})}, "logit_bias"),
        ({"sampling": Sampling(logit_bias={50: 1.0})}, "logit_bias"),
        ({"sampling": Sampling(logit_bias=dict.fromkeys(range(1025), 1.0))}, "logit_bias"),
        ({"sampling": Sampling(min_new_tokens=6)}, "min_new_tokens"),
        ({"sampling": Sampling(min_new_tokens=-1)}, "min_new_tokens"),
        ({"stop_ids": [3, 50]}, "stop_ids"),
        ({"details": Details(logprobs=21)}, "logprobs"),
        ({"details": Details(logprobs=-1)}, "logprobs"),
        ({"details": Details(prompt_logprobs=21)}, "prompt_logprobs"),
        ({"max_new_tokens": -1, "details": Details(prompt_logprobs=0)}, "max_new_tokens"),
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


def test_a_batch_invariant_request_is_refused_where_rows_cannot_run_in_lockstep() -> None:
    """On a device its promise would not hold."""
    world = World(make_limits(lockstep=False))
    good, bad = world.submit(batch_invariant=False), world.submit(batch_invariant=True)
    world.run_until_idle()
    assert (refusal(bad).code, refusal(bad).where) == ("request", "batch_invariant")
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
    world.facts = ComputeInfo(kv_bytes_per_position=100)
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
    world.do(events.ClientMessage(b"a", Hello(), 1))
    assert (world.welcomes[0].model, world.welcomes[0].context) == ("/models/fake", 64)


def test_garbage_is_answered() -> None:
    """A foreign client must hear why nothing happens."""
    world = World()
    world.do(events.Unreadable(b"a", "", "expected `int`"))
    assert "expected `int`" in world.strays[0].error.what


def test_the_same_id_for_another_request_is_refused() -> None:
    """Two requests must not be taken for one."""
    world = World()
    first = world.submit(request_id="x", eos_ids=[])
    second = world.submit([9], request_id="x")
    assert refusal(second).where == "request_id"
    world.books["x"] = first
    world.run_until_idle()
    assert finished(first).token_ids == first.expected()


def test_draining_ends_everything_with_an_error() -> None:
    """Whoever waits for an engine that stops must hear of it, and so must who comes too late."""
    world = World(make_limits(batch_size=1))
    books = [world.submit(max_new_tokens=40, eos_ids=[]) for _ in range(2)]
    world.tick()
    world.compute_step()
    world.do(events.Draining(world.now_ns))
    late = world.submit()
    assert [refusal(book).code for book in (*books, late)] == ["engine"] * 3
    assert world.open_requests == 0

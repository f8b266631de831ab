"""Which engine gets which request, without sockets: nothing waits while an engine idles, nothing is lost with one."""

from __future__ import annotations

import random

import pytest
from expertflow.errors import EngineError
from expertflow.ipc.messages import ErrorFacts, Refused, Submit, Tokens
from expertflow.runtime.client.balancer import RequestBalancer
from expertflow.runtime.client.request import ClientRequest
from expertflow.runtime.client.session import RETRY_NS, EngineSession
from expertflow.tests.runtime.client.test_session import Scheduler, finished, request, submitted
from hypothesis import given, settings
from hypothesis import strategies as st

GONE = EngineError("gone")
STOPPING = ErrorFacts("engine", "the engine is stopping")


def balancer_over(*sessions: EngineSession) -> RequestBalancer:
    balancer = RequestBalancer()
    for session in sessions:
        balancer.add(session)
    return balancer


def session(max_outstanding: int) -> EngineSession:
    made = EngineSession()
    made.max_outstanding = max_outstanding
    return made


def submit_all(balancer: RequestBalancer, count: int, deadline_ms: int | None = None) -> list[ClientRequest]:
    requests = [request(str(i), deadline_ms=deadline_ms) for i in range(count)]
    for each in requests:
        balancer.submit(each, 0)
    return requests


def test_one_engine_gets_everything_at_once() -> None:
    """Whatever it runs at a time: the window is its session's business."""
    only = session(max_outstanding=1)
    submit_all(balancer_over(only), 10)
    assert submitted(only.due(1)) == [str(i) for i in range(10)]


def test_several_engines_take_turns() -> None:
    one, other = session(4), session(4)
    submit_all(balancer_over(one, other), 6)
    assert (submitted(one.due(1)), submitted(other.due(1))) == (["0", "2", "4"], ["1", "3", "5"])


def test_a_slow_engine_does_not_hold_up_the_batch() -> None:
    """Handed all at once, half of the batch would wait for it."""
    slow, fast = session(2), session(2)
    balancer = balancer_over(slow, fast)
    submit_all(balancer, 20)
    slow.due(1)
    done = []
    while names := submitted(fast.due(1)):
        for name in names:
            fast.receive(finished(name, [1]), 1)
        done += names
        balancer.assign(1)
    assert len(done) == 18 and slow.open_count == 2


def test_what_a_lost_engine_had_goes_on_at_another() -> None:
    """I4: first in line, with what was delivered and what time is left."""
    lost, kept = session(2), session(2)
    balancer = balancer_over(lost, kept)
    first = submit_all(balancer, 6, deadline_ms=1000)[0]
    lost.due(0)
    lost.receive(Tokens("0", 0, [4, 5]), 1)
    balancer.lose(lost, GONE)
    balancer.assign(1)
    reissue_copies = [message for message in kept.due(400_000_000) if isinstance(message, Submit)]
    assert [message.request_id for message in reissue_copies] == ["1", "3", "0", "2", "4", "5"]
    assert (reissue_copies[2].resume_ids, reissue_copies[2].deadline_ms) == ([4, 5], 600) and first.error is None


def test_the_last_engine_takes_all_with_it() -> None:
    """Waiting here, under way there, refused by one that stops: all end with the cause."""
    one, other = session(1), session(1)
    balancer = balancer_over(one, other)
    requests = submit_all(balancer, 5)
    one.due(0)
    one.receive(Refused("0", STOPPING), 0)
    balancer.lose(other, GONE)
    balancer.lose(one, GONE)
    assert [each.error for each in requests] == [GONE] * 5


@pytest.mark.parametrize("gone", [False, True])
def test_an_engine_that_stops_gives_back_what_it_was_sent(gone: bool) -> None:
    """It gets nothing more, and the caller hears nothing of it; also if it is gone in the same moment."""
    stopping, kept = session(4), session(4)
    balancer = balancer_over(stopping, kept)
    requests = submit_all(balancer, 4)
    stopping.due(0)
    for name in ("0", "2"):
        stopping.receive(Refused(name, STOPPING), 1)
    if gone:
        balancer.lose(stopping, GONE)
    balancer.assign(1)
    assert submitted(kept.due(1)) == ["1", "3", "0", "2"] and submitted(stopping.due(1)) == []
    assert not any(each.ended for each in requests)


def test_a_single_engine_that_stops_says_so() -> None:
    only = session(4)
    [one] = submit_all(balancer_over(only), 1)
    only.due(0)
    only.receive(Refused("0", STOPPING), 1)
    assert isinstance(one.error, EngineError) and one.error.what == STOPPING.what


def test_cancelled_and_overdue_while_all_engines_are_full() -> None:
    """No scheduler has heard of them."""
    one, other = session(0), session(0)
    balancer = balancer_over(one, other)
    cancelled, late = submit_all(balancer, 2, deadline_ms=1)
    balancer.cancel(cancelled)
    assert balancer.next_due_ns() == 1_000_000
    balancer.assign(1_000_000)
    assert (cancelled.finish_reason, late.finish_reason) == ("cancelled", "deadline")


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12))
def test_every_request_ends_exactly_once_at_some_engine(seed: int, count: int) -> None:
    """Whatever is refused, lost or cancelled, whichever schedulers die, and whichever engines but one."""
    rng, now_ns = random.Random(seed), 1
    engines = {session(rng.randint(1, 3)): Scheduler(rng) for _ in range(3)}
    balancer = balancer_over(*engines)
    requests = submit_all(balancer, count)
    for turn in range(400):
        now_ns += RETRY_NS
        delivered = [list(each.tokens) for each in requests]
        balancer.assign(now_ns)
        for one, scheduler in engines.items():
            answers = [answer for message in one.due(now_ns) for answer in scheduler.receive(message)]
            for answer in [*answers, *scheduler.finish()]:
                one.receive(answer, now_ns)
            if turn < 100 and rng.random() < 0.1:
                scheduler.known.clear()
                one.on_reconnect()
        if len(engines) > 1 and rng.random() < 0.05:
            lost = rng.choice(list(engines))
            del engines[lost]
            balancer.lose(lost, GONE)
        if rng.random() < 0.05:
            balancer.cancel(rng.choice(requests))
        assert all(each.tokens[: len(before)] == before for each, before in zip(requests, delivered, strict=True))
    assert all(each.ended and each.error is None for each in requests)
    assert sum(one.open_count for one in engines) == 0

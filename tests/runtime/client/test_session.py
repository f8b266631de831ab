"""The client's core without sockets: every request ends once, whatever the scheduler does."""

from __future__ import annotations

import random

import msgspec
from expertflow.errors import BusyError, EngineError, RequestError
from expertflow.ipc.messages import (
    Accepted,
    Cancel,
    ErrorFacts,
    Finished,
    FromClient,
    Refused,
    Submit,
    Timings,
    TokenLogprob,
    Tokens,
)
from expertflow.runtime.client.request import BatchUpdates, ClientRequest
from expertflow.runtime.client.session import ASK_AGAIN_NS, MAX_RETRY_NS, RETRY_NS, EngineSession
from hypothesis import given, settings
from hypothesis import strategies as st

NEVER = Timings(queued_ns=0, first_token_ns=0, total_ns=0)


def request(name: str, wait_when_busy: bool = True, deadline_ms: int | None = None, priority: int = 0) -> ClientRequest:
    submit = Submit(request_id=name, prompt_ids=[1], max_new_tokens=9, deadline_ms=deadline_ms, priority=priority)
    return ClientRequest(0, submit, BatchUpdates(), wait_when_busy)


def finished(name: str, tokens: list[int], reason: str = "length") -> Finished:
    return Finished(request_id=name, token_ids=tokens, finish_reason=reason, timings=NEVER)


def busy(name: str) -> Refused:
    return Refused(name, ErrorFacts("busy", "3 are waiting"))


def submitted(messages: list[FromClient]) -> list[str]:
    return [message.request_id for message in messages if isinstance(message, Submit)]


def test_a_window_of_requests_is_under_way() -> None:
    """Ten thousand submits at once would fill the queue of everybody."""
    session = EngineSession(window=3)
    for i in range(10):
        session.submit(request(str(i)), 0)
    assert submitted(session.due(1)) == ["0", "1", "2"]
    assert submitted(session.due(2)) == []
    session.receive(finished("1", [5]), 3)
    assert submitted(session.due(3)) == ["3"]


def test_a_lower_priority_number_is_sent_first() -> None:
    """Else an urgent request would wait in its own client, behind the hundreds that do not fit the window."""
    session = EngineSession(window=2)
    for name in "abc":
        session.submit(request(name), 0)
    assert submitted(session.due(1)) == ["a", "b"]
    for name, priority in (("d", -1), ("e", 1), ("f", -1)):
        session.submit(request(name, priority=priority), 1)
    session.receive(finished("a", [5]), 2)
    session.receive(busy("b"), 2)
    session.window = 9
    assert submitted(session.due(2 + RETRY_NS)) == ["d", "f", "b", "c", "e"]
    session.on_reconnect()
    assert submitted(session.due(3 + RETRY_NS)) == ["d", "f", "b", "c", "e"]


def test_tokens_said_twice_are_heard_once() -> None:
    """A scheduler says all it knows when a request is submitted again."""
    session, one = EngineSession(), request("a")
    session.submit(one, 0)
    session.due(0)
    for offset, tokens in ((0, [4]), (0, [4, 5]), (1, [5]), (2, [6])):
        session.receive(Tokens("a", offset, tokens), 1)
    assert one.tokens == [4, 5, 6]
    session.receive(finished("a", [4, 5, 6, 7]), 2)
    assert (one.tokens, one.finish_reason) == ([4, 5, 6, 7], "length")
    session.receive(finished("a", [4, 5, 6, 7]), 3)
    assert session.strays == 1


def test_every_token_gets_its_own_logprob_once() -> None:
    """A scheduler says them again, or knows those of the last tokens alone: it began with `resume_ids`."""
    session, one = EngineSession(), request("a")
    session.submit(one, 0)
    session.due(0)
    entries = [TokenLogprob(token, -token / 10, 1) for token in range(9)]
    for offset, tokens, known in ((0, [4], 1), (0, [4, 5], 2), (0, [4, 5, 6], 1), (2, [6], 1)):
        session.receive(Tokens("a", offset, tokens, [entries[token] for token in tokens[-known:]]), 1)
    assert one.logprobs == entries[4:7]
    session.receive(msgspec.structs.replace(finished("a", [4, 5, 6, 7, 8]), logprobs=entries[6:9]), 2)
    assert one.tokens == [4, 5, 6, 7, 8] and one.logprobs == entries[4:9]


def test_after_a_reconnect_requests_go_again_with_what_was_delivered() -> None:
    """In their old order, before new ones, with the time that is left."""
    session = EngineSession(window=2)
    for name in "abc":
        session.submit(request(name, deadline_ms=1000), 0)
    session.due(0)
    session.receive(Tokens("a", 0, [4, 5]), 1)
    session.on_reconnect()
    reissue_copies = session.due(400_000_000)
    assert submitted(reissue_copies) == ["a", "b"]
    assert isinstance(reissue_copies[0], Submit) and (reissue_copies[0].resume_ids, reissue_copies[0].deadline_ms) == (
        [4, 5],
        600,
    )


def test_busy_requests_wait_longer_and_longer_and_keep_their_order() -> None:
    """Retrying at once would be a flood of its own."""
    session = EngineSession()
    for name in "abc":
        session.submit(request(name), 0)
    now_ns, waits = 1, []
    for _ in range(10):
        assert submitted(session.due(now_ns)) == ["a", "b", "c"]
        for name in "abc":
            session.receive(busy(name), now_ns)
        due_ns = session.next_due_ns()
        assert due_ns is not None and not session.due(due_ns - 1)
        waits.append(due_ns - now_ns)
        now_ns = due_ns
    assert waits[0] == RETRY_NS and waits[-1] == MAX_RETRY_NS and waits == sorted(waits)


def test_busy_is_an_error_for_those_who_do_not_wait() -> None:
    """`wait_when_busy=False`."""
    session, one = EngineSession(), request("a", wait_when_busy=False)
    session.submit(one, 0)
    session.due(0)
    session.receive(busy("a"), 1)
    assert isinstance(one.error, BusyError)


def test_an_accepted_request_is_not_given_up_as_busy() -> None:
    """A restarted scheduler may be flooded with what its predecessor had accepted."""
    session, one = EngineSession(), request("a", wait_when_busy=False)
    session.submit(one, 0)
    session.due(0)
    session.receive(Accepted("a"), 1)
    session.on_reconnect()
    session.due(2)
    session.receive(busy("a"), 3)
    assert one.error is None and submitted(session.due(2 * RETRY_NS)) == ["a"]


def test_a_refusal_is_typed() -> None:
    """The caller can tell a bad request from a dead engine."""
    session, one = EngineSession(), request("a")
    session.submit(one, 0)
    session.due(0)
    session.receive(Refused("a", ErrorFacts("request", "is empty", "prompt", "Fill it")), 1)
    assert isinstance(one.error, RequestError) and str(one.error) == "prompt: is empty. Fill it"


def test_cancelled_before_it_was_sent() -> None:
    """The scheduler never hears of it."""
    session, one = EngineSession(window=0), request("a")
    session.submit(one, 0)
    session.cancel(one)
    session.window = 1
    assert one.finish_reason == "cancelled" and session.due(1) == []


def test_a_cancel_that_crosses_a_reconnect() -> None:
    """It is not submitted once more just to be cancelled."""
    session, one = EngineSession(), request("a")
    session.submit(one, 0)
    session.due(0)
    session.cancel(one)
    assert session.due(1) == [Cancel("a")]
    session.on_reconnect()
    assert one.finish_reason == "cancelled" and session.due(2) == []


def test_a_deadline_ends_what_was_never_sent() -> None:
    """It may pass while a full window or a busy engine keeps the request back."""
    session, one = EngineSession(window=0), request("a", deadline_ms=1)
    session.submit(one, 0)
    assert session.next_due_ns() == 1_000_000
    session.due(1_000_000)
    assert one.finish_reason == "deadline"


def test_long_silence_is_not_trusted() -> None:
    """Answers that were lost on the way come again when the requests are submitted again."""
    session, one = EngineSession(), request("a")
    session.submit(one, 0)
    session.due(1)
    assert session.due(ASK_AGAIN_NS) == []
    assert submitted(session.due(2 * ASK_AGAIN_NS)) == ["a"]
    assert session.due(2 * ASK_AGAIN_NS + 1) == []


def test_a_dead_engine_ends_everything() -> None:
    """Under way, refused as busy or not sent: all end with the error."""
    session = EngineSession(window=2)
    requests = [request(name) for name in "abc"]
    for each in requests:
        session.submit(each, 0)
    session.due(0)
    session.receive(busy("a"), 0)
    session.fail_all(EngineError("gone"))
    assert all(isinstance(each.error, EngineError) for each in requests)


class Scheduler:
    """Says anything about the requests it knows, forgets all when it dies, and finishes what is submitted again."""

    def __init__(self, rng: random.Random) -> None:
        self.rng, self.known = rng, dict[str, list[int]]()

    def receive(self, message: FromClient) -> list[Accepted | Tokens | Finished | Refused]:
        match message:
            case Submit(request_id=name) if self.rng.random() < 0.3:
                return [busy(name)]
            case Submit(request_id=name):
                self.known[name] = list(range(len(message.resume_ids) + self.rng.randrange(4)))
                return [Accepted(name), Tokens(name, 0, self.known[name])]
            case Cancel(name) if name in self.known:
                return [finished(name, self.known.pop(name), "cancelled")]
            case _:
                return []

    def finish(self) -> list[Finished]:
        return [finished(name, [*self.known.pop(name), 99]) for name in list(self.known) if self.rng.random() < 0.3]


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12))
def test_every_request_ends_exactly_once(seed: int, count: int) -> None:
    """Whatever is refused, lost, repeated or cancelled, and whenever the scheduler dies."""
    rng = random.Random(seed)
    session, scheduler, now_ns = EngineSession(window=4), Scheduler(rng), 1
    requests = [request(str(i)) for i in range(count)]
    for each in requests:
        session.submit(each, now_ns)
    for turn in range(400):
        now_ns += RETRY_NS
        delivered = [list(each.tokens) for each in requests]
        for message in session.due(now_ns):
            for answer in scheduler.receive(message):
                session.receive(answer, now_ns)
        for answer in scheduler.finish():
            session.receive(answer, now_ns)
        if turn < 100 and rng.random() < 0.1:
            scheduler.known.clear()
            session.on_reconnect()
        if rng.random() < 0.05:
            session.cancel(rng.choice(requests))
        assert all(each.tokens[: len(before)] == before for each, before in zip(requests, delivered, strict=True))
    assert all(each.ended and each.error is None for each in requests)
    assert session.due(now_ns) == []

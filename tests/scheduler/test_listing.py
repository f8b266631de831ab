"""Open requests as watchers see them: in order, bounded, without a text."""

from __future__ import annotations

import msgspec
from expertflow.ipc.messages import Sampling
from expertflow.workers.scheduler.requests import MAX_LISTED, RequestState, list_open

SECRET = 7654321


def request(number: int, started_ns: int | None = None, first_token_ns: int | None = None) -> RequestState:
    return RequestState(
        number=number, request_id=f"r{number}", identity=b"c", digest=b"d", prompt_ids=[SECRET] * 3,
        sampling=Sampling(), stop_ids=frozenset(), token_limit=9, positions=12, accepted_ns=100, started_ns=started_ns,
        first_token_ns=first_token_ns, tokens=[SECRET] * 2 if first_token_ns else [], user="ann", priority=1,
    )  # fmt: skip


def test_what_runs_comes_first_and_nothing_is_told_of_texts() -> None:
    listed = list_open([request(4), request(2), request(9, 150), request(8, 120, 140)], now_ns=1100)
    assert [(each.request_id, each.state) for each in listed.requests] == [
        ("r8", "decode"), ("r9", "prefill"), ("r2", "waiting"), ("r4", "waiting"),
    ]  # fmt: skip
    first = listed.requests[0]
    assert (first.prompt_tokens, first.tokens, first.token_limit, first.age_ns) == (3, 2, 9, 1000)
    assert (first.user, first.priority) == ("ann", 1)
    assert str(SECRET) not in msgspec.json.encode(listed).decode()


def test_a_long_queue_is_cut() -> None:
    listed = list_open([request(number) for number in range(1000)], now_ns=1100)
    assert listed.total == 1000 and len(listed.requests) == MAX_LISTED and listed.requests[0].request_id == "r0"

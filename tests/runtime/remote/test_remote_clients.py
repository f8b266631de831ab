"""The proxy's core alone: bounds, what reaches the engine, and what a slow client is told."""

from __future__ import annotations

import msgspec
import pytest
from expertflow.ipc.messages import (
    AskSnapshot,
    Cancel,
    Finished,
    Hello,
    KillStage,
    Message,
    Refused,
    Submit,
    Timings,
    Tokens,
)
from expertflow.ipc.messages.to_client import TO_CLIENT
from expertflow.runtime.remote.remote_clients import (
    MAX_LOST,
    Answered,
    Arrived,
    Close,
    Forward,
    Open,
    ProxyAction,
    RemoteClients,
    Reply,
    Tick,
    Undelivered,
)

CLIENTS, MONITOR = b"clients", b"monitor"
EVERYONE = Tick(lambda key: True)


def encode(message: Message) -> bytes:
    return msgspec.msgpack.encode(message)


def submit(request_id: str = "1", **more: object) -> Submit:
    return Submit(request_id=request_id, prompt_ids=[1], max_new_tokens=1, **more)  # type: ignore[arg-type]


def arrive(clients: RemoteClients, who: bytes, message: Message | bytes, channel: bytes = CLIENTS) -> list[ProxyAction]:
    payload = message if isinstance(message, bytes) else encode(message)
    return clients.handle(Arrived(who, b"key of " + who, channel, payload))


def refusals(actions: list[ProxyAction]) -> list[Refused]:
    messages = [TO_CLIENT.decode(action.payload) for action in actions if isinstance(action, Reply) and action.payload]
    return [message for message in messages if isinstance(message, Refused)]


def end_of(request_id: str) -> bytes:
    timings = Timings(queued_ns=0, first_token_ns=0, total_ns=0)
    return encode(Finished(request_id=request_id, token_ids=[1], finish_reason="length", timings=timings))


def test_each_client_gets_a_connection_of_its_own_once() -> None:
    clients = RemoteClients()
    assert arrive(clients, b"a", Hello()) == [Open(b"a", CLIENTS), Forward(b"a", encode(Hello()))]
    assert arrive(clients, b"a", Cancel("1")) == [Forward(b"a", encode(Cancel("1")))]
    assert arrive(clients, b"b", AskSnapshot(), MONITOR)[0] == Open(b"b", MONITOR)
    assert clients.counts.clients == 2


def test_answers_go_to_the_client_whose_connection_they_came_on() -> None:
    clients = RemoteClients()
    arrive(clients, b"a", Hello())
    assert clients.handle(Answered(b"a", b"x")) == [Reply(b"a", CLIENTS, b"x")]
    assert clients.handle(Answered(b"unknown", b"x")) == []


@pytest.mark.parametrize(
    "channel,message",
    [
        (b"control", encode(Hello())), (b"", encode(Hello())), (b"../other/clients", encode(Hello())),
        (MONITOR, encode(KillStage("compute"))), (MONITOR, encode(Hello())), (MONITOR, b"\xc1"),
    ],
)  # fmt: skip
def test_nothing_but_questions_reaches_other_sockets(channel: bytes, message: bytes) -> None:
    """A remote watcher kills nothing, and nobody names a socket that is not for clients."""
    clients = RemoteClients()
    assert not [action for action in arrive(clients, b"a", message, channel) if isinstance(action, Forward)]
    assert clients.counts.rejected == 1


def test_a_client_keeps_to_its_channel() -> None:
    clients = RemoteClients()
    arrive(clients, b"a", Hello())
    assert arrive(clients, b"a", AskSnapshot(), MONITOR) == [] and clients.counts.rejected == 1


@pytest.mark.parametrize("payload", [b"\xc1", b"", b"\x90", b"\x81\xa4type\xa9KillStage", b"\x91" * 100_000])
def test_what_cannot_be_read_is_refused_here(payload: bytes) -> None:
    clients = RemoteClients()
    actions = arrive(clients, b"a", payload)
    assert not [action for action in actions if isinstance(action, Forward)] and len(refusals(actions)) == 1


def test_a_refusal_names_its_request_where_it_can() -> None:
    payload = msgspec.msgpack.encode({"type": "Submit", "request_id": "7", "prompt_ids": "wrong"})
    [refused] = refusals(arrive(RemoteClients(), b"a", payload))
    assert refused.request_id == "7" and "could not be read" in refused.error.what


def test_attachments_of_others_cannot_be_named() -> None:
    name = "0" * 32 + ".1"
    actions = arrive(RemoteClients(), b"a", submit(attachment=name))
    assert len(refusals(actions)) == 1 and not [action for action in actions if isinstance(action, Forward)]


def test_the_number_of_clients_is_bounded_and_said() -> None:
    clients = RemoteClients(max_clients=2)
    arrive(clients, b"a", Hello())
    arrive(clients, b"b", Hello())
    actions = arrive(clients, b"c", submit())
    [refused] = refusals(actions)
    assert (refused.request_id, refused.error.code) == ("1", "busy") and len(actions) == 1
    clients.handle(Undelivered(b"a", b"", gone=True))
    assert arrive(clients, b"c", Hello())[0] == Open(b"c", CLIENTS)


def test_a_client_that_goes_loses_its_connection() -> None:
    clients = RemoteClients()
    arrive(clients, b"a", submit())
    assert clients.handle(EVERYONE) == [Reply(b"a", CLIENTS, b"")]
    assert clients.handle(Undelivered(b"a", b"", gone=True)) == [Close(b"a")]
    assert clients.handle(EVERYONE) == [] and clients.counts.clients == 0


def test_a_key_that_is_allowed_no_more_ends_its_clients() -> None:
    clients = RemoteClients()
    arrive(clients, b"a", Hello())
    arrive(clients, b"b", Hello())
    assert clients.handle(Tick(lambda key: key == b"key of b")) == [Close(b"a"), Reply(b"b", CLIENTS, b"")]


def test_a_slow_client_is_told_of_each_lost_request_once_it_reads() -> None:
    clients = RemoteClients()
    for name in ("done", "running", "ending"):
        arrive(clients, b"a", submit(name))
    clients.handle(Answered(b"a", end_of("done")))
    clients.handle(Answered(b"a", end_of("ending")))
    assert clients.handle(Undelivered(b"a", end_of("ending"), gone=False)) == [Close(b"a")]
    assert arrive(clients, b"a", submit("later")) == [], "nothing new begins before it reads"
    assert clients.handle(Answered(b"a", b"late")) == []
    told = clients.handle(EVERYONE)
    assert {refused.request_id for refused in refusals(told)} == {"running", "ending", "later"}
    assert all("unread" in refused.error.what for refused in refusals(told))
    for action in told:  # it still reads nothing
        assert isinstance(action, Reply)
        assert clients.handle(Undelivered(b"a", action.payload, gone=False)) == []
    assert len(refusals(clients.handle(EVERYONE))) == 3
    assert refusals(clients.handle(EVERYONE)) == [] and clients.counts.slow == 1
    assert arrive(clients, b"a", submit("new"))[0] == Open(b"a", CLIENTS)


def test_a_client_that_never_reads_and_always_sends_is_let_go() -> None:
    """Else the list of what it is to be told would grow without an end."""
    clients = RemoteClients()
    arrive(clients, b"a", submit("first"))
    clients.handle(Undelivered(b"a", b"", gone=False))
    sent = 0
    while not (actions := arrive(clients, b"a", submit(f"{sent}"))):
        sent += 1
        assert sent <= MAX_LOST
    assert actions == [Close(b"a")] and clients.handle(EVERYONE) == []


def test_tokens_end_no_request() -> None:
    clients = RemoteClients()
    arrive(clients, b"a", submit())
    clients.handle(Answered(b"a", encode(Tokens("1", 0, [5]))))
    clients.handle(Undelivered(b"a", b"", gone=False))
    assert [refused.request_id for refused in refusals(clients.handle(EVERYONE))] == ["1"]

"""Clients that do not read: what they lose is bounded, and they are told of it when they read again."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zmq
from expertflow.configs.schema import Config
from expertflow.ipc.transport.router import Router
from expertflow.ipc.transport.unread import MAX_LOST, TELL_EVERY_NS, UnreadClients
from expertflow.runtime.client import Client
from expertflow.runtime.client.session import ASK_AGAIN_NS
from expertflow.tests.runtime.fakes import wait_until
from expertflow.tests.scheduler.fake_engine import FakeEngine
from expertflow.workers.scheduler import shell as shell_module

MANY = 300
"""Answers of 3 kB each: more than the buffers of a connection take."""
SLOW = b"slow"


class SlowClient:
    """A client that keeps no more than one message beyond what the system keeps for it."""

    def __init__(self, address: str) -> None:
        self._context = zmq.Context()
        self.socket = self._context.socket(zmq.DEALER)
        self.socket.rcvhwm = 1
        self.socket.connect(f"ipc://{address}/clients")

    def say(self, **message: Any) -> None:
        self.socket.send(msgpack.packb(message) or b"")

    def submit(self, request_id: str, **options: Any) -> None:
        options = {"prompt_ids": [5], "max_new_tokens": 20, "eos_ids": [], **options}
        self.say(type="Submit", request_id=request_id, **options)

    def receive(self) -> dict[str, Any]:
        assert self.socket.poll(60_000), "no answer"
        return msgpack.unpackb(self.socket.recv())

    def receive_end(self, request_id: str) -> dict[str, Any]:
        while (message := self.receive()).get("request_id") != request_id or message["type"] in ("Accepted", "Tokens"):
            pass
        return message

    def close(self) -> None:
        self._context.destroy(linger=0)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeEngine]:
    """One that keeps few answers for a client; every `Welcome` holds the name of the model's folder."""
    monkeypatch.setattr(shell_module, "Router", partial(Router, high_water=5))
    with FakeEngine(Path(*["m" * 200] * 16), Config(kv_memory="100KB")) as engine:
        yield engine


def abandoned(engine: FakeEngine) -> int:
    assert engine.shell is not None
    return engine.shell._state.statistics().abandoned


def test_a_client_that_reads_again_is_told_what_it_lost_and_can_go_on(
    engine: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    """As `busy`, which every client knows: it submits again with the tokens that it has. Others notice nothing."""
    with Client(engine.address) as other, closing(SlowClient(engine.address)) as slow:
        engine.paused.set()
        for name in ("one", "two"):
            slow.submit(name)
            assert slow.receive() == {"type": "Accepted", "request_id": name}
        with caplog.at_level(logging.WARNING):
            for _ in range(MANY):
                slow.say(type="Hello")
            wait_until(lambda: abandoned(engine) == 2)
        assert caplog.text.count("a client left 5 answers unread: 2 requests were dropped") == 1
        engine.paused.clear()
        assert len(other.generate([[5]], max_new_tokens=20, eos_ids=[])[0].token_ids) == 20
        for name in ("one", "two"):
            refused = slow.receive_end(name)
            assert refused["type"] == "Refused" and refused["error"]["code"] == "busy"
            assert "unread" in refused["error"]["what"]
        slow.submit("one", resume_ids=[1, 2, 3])
        finished = slow.receive_end("one")
        assert finished["type"] == "Finished" and len(finished["token_ids"]) == 20
        assert finished["token_ids"][:3] == [1, 2, 3]


def test_a_client_whose_connection_is_cut_asks_again_at_once(tmp_path: Path) -> None:
    """Its socket connects anew, which its session hears: it need not wait for silence (`ASK_AGAIN_NS`)."""
    with FakeEngine(tmp_path) as engine, Client(engine.address) as client:
        engine.steps_left = 5
        batch = client.submit([[1], [2]], max_new_tokens=20, eos_ids=[])
        assert engine.paused.wait(60)
        cut_connections(f"{engine.address}/clients")
        engine.steps_left = None
        engine.paused.clear()
        assert [len(each.token_ids) for each in batch.results(timeout_s=ASK_AGAIN_NS / 2e9)] == [20, 20]


def cut_connections(path: str) -> None:
    """Break every connection of this process to a Unix socket that it listens at."""
    for name in os.listdir("/proc/self/fd"):
        try:
            end = socket.socket(fileno=os.dup(int(name)))
        except OSError:  # it is no socket
            continue
        with end:
            is_unix = end.family == socket.AF_UNIX and end.getsockname() == path
            if is_unix and not end.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                end.shutdown(socket.SHUT_RDWR)


def test_a_client_that_goes_instead_is_forgotten(engine: FakeEngine) -> None:
    slow = SlowClient(engine.address)
    engine.paused.set()
    slow.submit("one")
    slow.receive()
    for _ in range(MANY):
        slow.say(type="Hello")
    wait_until(lambda: abandoned(engine) == 1)
    assert engine.shell is not None and engine.shell._unread._lost
    slow.close()
    wait_until(lambda: engine.shell is not None and not engine.shell._unread._lost)


def test_what_a_client_need_not_be_told_is_left_out() -> None:
    """It has asked again by itself, or got the end after all: a second end would be one too many."""
    clients = UnreadClients()
    assert clients.lose(SLOW, ["a", "b", "", "a"]) and not clients.lose(SLOW, ["c"])
    clients.discard(SLOW, "b")
    clients.discard(b"another", "a")
    assert clients.due(TELL_EVERY_NS) == {SLOW: ["a", "c"]}
    clients.on_told(SLOW, ["a"])
    assert clients.due(2 * TELL_EVERY_NS - 1) == {}, "too early for another attempt"
    assert clients.due(2 * TELL_EVERY_NS) == {SLOW: ["c"]}
    clients.on_told(SLOW, ["c"])
    assert clients.due(3 * TELL_EVERY_NS) == {}
    assert clients.lose(SLOW, ["d"]), "it was told of all, so this is another time"


def test_a_client_that_submits_and_never_reads_costs_bounded_memory() -> None:
    clients = UnreadClients()
    for number in range(MAX_LOST + 10):
        clients.lose(SLOW, [str(number)])
    assert len(clients.due(TELL_EVERY_NS)[SLOW]) == MAX_LOST

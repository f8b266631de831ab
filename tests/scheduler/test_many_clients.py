"""Thousands of clients at one scheduler: each gets its answer, memory stays small, and one too many is no crash."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgpack
import psutil
import pytest
import zmq
from expertflow import Client
from expertflow.configs.schema import Config
from expertflow.ipc.shared.open_files import free_files
from expertflow.ipc.transport.router import SPARE_FILES
from expertflow.tests.runtime.fakes import wait_until
from expertflow.tests.scheduler.fake_engine import FakeEngine

COUNT = 5000
FILES_OF_A_CLIENT = 2
"""Its connection and its signal; the scheduler, in this process here, has one more for it."""


@contextmanager
def connections(engine: FakeEngine, count: int) -> Iterator[list[zmq.Socket[bytes]]]:
    """So many clients that connect at once; their context closes at the end."""
    context = zmq.Context(io_threads=1)
    context.set(zmq.MAX_SOCKETS, count + 100)
    opened = []
    try:
        for _ in range(count):
            socket = context.socket(zmq.DEALER)
            socket.connect(f"ipc://{engine.address}/clients")
            opened.append(socket)
        yield opened
    finally:
        context.destroy(linger=0)


def ask(socket: zmq.Socket[bytes], number: int) -> None:
    submit = {"type": "Submit", "request_id": f"{number}", "prompt_ids": [1 + number % 30], "max_new_tokens": 2}
    socket.send(msgpack.packb(submit | {"eos_ids": []}) or b"")


def read_end(socket: zmq.Socket[bytes]) -> dict[str, Any]:
    while True:
        assert socket.poll(240_000), "no end came"
        message = msgpack.unpackb(socket.recv())
        if message["type"] in ("Finished", "Refused"):
            return message


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_five_thousand_clients_each_get_their_answer_and_memory_stays_small(tmp_path: Path) -> None:
    needed = (FILES_OF_A_CLIENT + 1) * COUNT + SPARE_FILES + 200
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < needed:
        pytest.skip(f"needs {needed} open files")
    with FakeEngine(tmp_path, Config(kv_memory="100MB", batch_size=64)) as engine, Client(engine.address) as steady:
        before = psutil.Process().memory_info().rss
        with connections(engine, COUNT) as clients:
            for number, client in enumerate(clients):
                ask(client, number)
            ends = [read_end(client) for client in clients]
            assert [end["type"] for end in ends] == ["Finished"] * COUNT
            assert [end["request_id"] for end in ends] == [str(number) for number in range(COUNT)]
            bytes_each = (psutil.Process().memory_info().rss - before) / COUNT
            print(f"{bytes_each / 1e3:.0f} kB for each client and its end of the connection")  # noqa: T201
            assert bytes_each < 200_000, "both ends of a connection, with a request and its record"
        assert steady.generate([[1]], 2)


def test_clients_beyond_the_open_files_wait_and_disturb_nobody(tmp_path: Path) -> None:
    """The limit is bounded peers, not a process that can open nothing any more."""
    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with FakeEngine(tmp_path, Config(kv_memory="100KB", batch_size=4)) as engine, Client(engine.address) as first:
        shell = engine.shell
        assert shell is not None
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed - free_files() + SPARE_FILES + 200, most))
        try:
            with connections(engine, 90) as clients:
                for number, client in enumerate(clients):
                    ask(client, number)
                wait_until(lambda: not shell._clients.accepts)
                assert first.generate([[1]], 2), "who is in stays in"
                engine.kill_compute()
                assert first.generate([[2]], 2), "a link can still be opened"
            wait_until(lambda: shell._clients.accepts)
            with Client(engine.address, connect_timeout_s=60) as later:
                assert later.generate([[3]], 2)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, most))

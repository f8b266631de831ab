"""An engine over TCP: with a key everything as on this machine, without one nothing, and nobody else notices."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq
from expertflow import AsyncClient, Client
from expertflow.configs.schema import Config
from expertflow.errors import EngineError, RequestError, UsageError
from expertflow.ipc.messages import Hello, Submit, Welcome
from expertflow.ipc.messages.to_client import TO_CLIENT
from expertflow.ipc.transport.link import Link
from expertflow.runtime.bundle.file import read_bundle
from expertflow.runtime.client.images import ImagePrompt
from expertflow.runtime.client.watching import Watcher
from expertflow.runtime.command_line.registry import parse
from expertflow.runtime.commands.common.engine_client import open_client, refuse_engine_options
from expertflow.runtime.commands.generate import Generate
from expertflow.runtime.remote.curve import open_client_socket, open_server_socket
from expertflow.runtime.remote.keys import allow_key, new_client_keys, new_keys, read_client_keys, read_server_pair
from expertflow.runtime.service.listening import bind, url_of
from expertflow.tests.runtime.fakes import fake_engine, wait_until
from expertflow.tests.runtime.remote.proxies import LocalProxy
from expertflow.tests.scheduler.fake_engine import FakeEngine

PROMPTS = [[1, 2, 3], [4], [5, 6]]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    new_keys(folder)
    return folder


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[FakeEngine]:
    with FakeEngine(tmp_path, Config(kv_memory="100KB", batch_size=4)) as engine:
        yield engine


@pytest.fixture
def proxy(engine: FakeEngine, keys: Path) -> Iterator[LocalProxy]:
    with LocalProxy(keys / "server", engine.address) as proxy:
        yield proxy


@pytest.fixture
def client(proxy: LocalProxy, keys: Path) -> Iterator[Client]:
    with Client(proxy.address, keys=keys / "client") as client:
        yield client


def outputs(client: Client) -> list[list[int]]:
    return [done.token_ids for done in client.generate(PROMPTS, 8, eos_ids=[], seed=1)]


def test_a_remote_client_gets_what_a_local_one_gets(engine: FakeEngine, client: Client) -> None:
    with Client(engine.address) as local:
        assert outputs(client) == outputs(local)
        assert client.model == local.model


def test_the_asyncio_client_gets_the_same(engine: FakeEngine, proxy: LocalProxy, keys: Path) -> None:
    async def run() -> list[list[int]]:
        async with AsyncClient(proxy.address, keys=keys / "client") as client:
            return [done.token_ids for done in await client.generate(PROMPTS, 8, eos_ids=[], seed=1)]

    with Client(engine.address) as local:
        assert asyncio.run(asyncio.wait_for(run(), 60)) == outputs(local)


def test_commands_take_keys(engine: FakeEngine, proxy: LocalProxy, keys: Path, tmp_path: Path) -> None:
    """With a model of their own, for its tokenizer; other options of an engine are refused, as for a local one."""
    over_tcp = ["--address", proxy.address, "--keys", str(keys / "client")]
    command = parse(["generate", *over_tcp, "--model", str(tmp_path)])
    assert isinstance(command, Generate)
    refuse_engine_options(command.engine, command.preset, command.address)
    with pytest.raises(UsageError, match="do not change an engine"):
        refuse_engine_options(command.engine, command.preset, engine.address)
    with open_client(command.engine, command.address, command.keys) as client:
        assert client.model.model == str(tmp_path.resolve()) and outputs(client)


def test_a_restarted_scheduler_is_a_pause(engine: FakeEngine, proxy: LocalProxy, client: Client) -> None:
    """I4 holds over TCP, too: clients see the restart, submit again, and what was delivered stays."""
    with Client(engine.address) as local:
        expected = outputs(local)
    engine.paused.set()
    batch = client.submit(PROMPTS, 8, eos_ids=[], seed=1)
    shell = engine.shell
    assert shell is not None
    wait_until(lambda: shell._state.statistics().accepted == 2 * len(PROMPTS))
    engine.kill_scheduler()
    engine.start_scheduler()
    engine.paused.clear()
    wait_until(lambda: batch.wait_until_started(0.05) and proxy.counts.get("accepted") == 2)
    assert [done.token_ids for done in batch.results(timeout_s=60)] == expected
    assert outputs(client) == expected


def test_requests_of_a_remote_client_that_goes_are_dropped(engine: FakeEngine, proxy: LocalProxy, keys: Path) -> None:
    client = Client(proxy.address, keys=keys / "client")
    batch = client.submit([[1]] * 4, 50, eos_ids=[])
    batch.wait_until_started(30)
    client.close()
    wait_until(lambda: proxy.counts.get("clients") == 0)
    with Client(engine.address) as local:
        assert outputs(local)
    shell = engine.shell
    wait_until(lambda: shell is not None and shell._state.open_requests(0).total == 0)


def test_an_unknown_key_is_refused_by_name(proxy: LocalProxy, client: Client, keys: Path, tmp_path: Path) -> None:
    new_client_keys(tmp_path / "other", keys / "server" / "server.key")
    with pytest.raises(EngineError, match="does not know this client's key") as caught:
        Client(proxy.address, keys=tmp_path / "other", connect_timeout_s=60)
    assert "expertflow keys allow" in caught.value.remedy
    wait_until(lambda: proxy.counts.get("unknown_keys") == 1)
    assert outputs(client)


def test_a_server_with_another_key_is_not_spoken_to(proxy: LocalProxy, client: Client, tmp_path: Path) -> None:
    new_keys(tmp_path)
    with pytest.raises(EngineError, match="gave no answer within 0.5 s") as caught:
        Client(proxy.address, keys=tmp_path / "client", connect_timeout_s=0.5)
    assert "key" in caught.value.remedy
    wait_until(lambda: proxy.counts.get("strangers", 0) > 0)
    assert outputs(client)


@pytest.mark.parametrize(
    "data", [b"", b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 5000, b"\xff" + bytes(8) + b"\x7f\x03\x01NULL"]
)
def test_other_bytes_disturb_nobody(proxy: LocalProxy, client: Client, data: bytes) -> None:
    before = proxy.counts.get("strangers", 0)
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", proxy.port)) as opened:
            opened.sendall(data)
            assert outputs(client)
    wait_until(lambda: proxy.counts.get("strangers", 0) > before)


def test_zeromq_without_keys_reaches_nothing(proxy: LocalProxy, client: Client, engine: FakeEngine) -> None:
    context = zmq.Context()
    stranger = context.socket(zmq.DEALER)
    stranger.connect(proxy.address)
    stranger.send_multipart([b"clients", b"\x81\xa4type\xa5Hello"])
    wait_until(lambda: proxy.counts.get("strangers", 0) > 0)
    assert not stranger.poll(100) and outputs(client)
    context.destroy(linger=0)


def test_a_key_that_is_allowed_later_is_let_in_and_one_that_is_removed_is_not(
    engine: FakeEngine, tmp_path: Path
) -> None:
    server, client = new_keys(tmp_path)
    public = new_client_keys(tmp_path / "late", server / "server.key")
    with LocalProxy(server, engine.address) as proxy, Client(proxy.address, keys=client) as first:
        with pytest.raises(EngineError, match="does not know"):
            Client(proxy.address, keys=tmp_path / "late", connect_timeout_s=60)
        place = allow_key(server, public, "late")
        with Client(proxy.address, keys=tmp_path / "late") as late:
            assert outputs(late) == outputs(first)
            place.unlink()
            wait_until(lambda: proxy.counts.get("clients") == 1)
            shell = engine.shell
            assert shell is not None
            before = shell._state.statistics().accepted
            late.submit([[1]], 2)
            wait_until(lambda: proxy.counts.get("dropped") == 1)
            assert shell._state.statistics().accepted == before and proxy.counts["clients"] == 1
            with pytest.raises(EngineError, match="does not know"):
                Client(proxy.address, keys=tmp_path / "late", connect_timeout_s=60)
        assert outputs(first)


def test_too_many_clients_are_told(engine: FakeEngine, keys: Path) -> None:
    with LocalProxy(keys / "server", engine.address, max_clients=1) as proxy:
        with Client(proxy.address, keys=keys / "client") as first:
            with pytest.raises(EngineError, match="1 remote clients are connected, the limit is 1"):
                Client(proxy.address, keys=keys / "client", connect_timeout_s=60)
            assert outputs(first)
        wait_until(lambda: proxy.counts.get("clients") == 0)
        with Client(proxy.address, keys=keys / "client") as second:
            assert outputs(second)


def test_images_are_refused_by_name(client: Client) -> None:
    [refused] = client.submit([ImagePrompt("a", [b"x"])]).results(return_errors=True)
    assert isinstance(refused, RequestError) and "over TCP" in refused.what


def test_a_client_that_reads_nothing_is_told_when_it_reads_again(proxy: LocalProxy, client: Client, keys: Path) -> None:
    """What waits for it is bounded, and it learns which requests that has cost it."""
    context = zmq.Context()
    socket = open_client_socket(context, read_client_keys(keys / "client"))
    socket.setsockopt(zmq.RCVHWM, 1)
    socket.setsockopt(zmq.RCVBUF, 4096)
    socket.connect(proxy.address)
    link = Link(socket, TO_CLIENT, b"clients")
    link.send(Submit(request_id="slow", prompt_ids=[1], max_new_tokens=50, eos_ids=[]))
    while proxy.counts.get("slow", 0) == 0:
        for _ in range(2000):
            link.send(Hello())
    assert outputs(client)
    messages = []
    wait_until(lambda: messages.extend(link.receive()) or _end_of("slow", messages), 60)
    assert all(isinstance(message, Welcome) or message.request_id == "slow" for message in messages)
    context.destroy(linger=0)


def _end_of(request_id: str, messages: list) -> bool:
    return any(type(each).__name__ in ("Finished", "Refused") and each.request_id == request_id for each in messages)


def test_an_address_over_tcp_needs_keys_and_another_takes_none(engine: FakeEngine, keys: Path) -> None:
    with pytest.raises(UsageError, match="needs keys"):
        Client("tcp://127.0.0.1:1")
    with pytest.raises(UsageError, match="are for an engine over TCP"):
        Client(engine.address, keys=keys / "client")
    for wrong in ("tcp://", "tcp://a", "tcp://a:", "tcp://a:b", "tcp://a:0", "tcp://:1", "tcp://a:70000"):
        with pytest.raises(UsageError, match="must be tcp://HOST:PORT"):
            Client(wrong, keys=keys / "client")


def test_a_batch_file_runs_over_tcp(proxy: LocalProxy, engine: FakeEngine, keys: Path, tmp_path: Path) -> None:
    own = {"ignore_eos": True, "return_token_ids": True}
    body = own | {"model": tmp_path.name, "prompt": [1, 2, 3], "max_tokens": 3, "seed": 1}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": body}
    given, results = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    given.write_text(json.dumps(line))
    over_tcp = ["--address", proxy.address, "--keys", str(keys / "client")]
    assert parse(["batch", str(given), str(results), *over_tcp]).run() == 0
    [choice] = json.loads(results.read_text())["response"]["body"]["choices"]
    with Client(engine.address) as local:
        assert choice["token_ids"] == local.generate([[1, 2, 3]], 3, eos_ids=[], seed=1)[0].token_ids


def test_a_remote_watcher_sees_the_engine_and_kills_nothing(keys: Path, tmp_path: Path) -> None:
    with (
        fake_engine(("compute", "loader")) as engine,
        LocalProxy(keys / "server", engine.address) as proxy,
        Watcher(proxy.address, keys / "client") as watcher,
    ):
        wait_until(lambda: set(watcher.snapshot().stages) == {"compute", "loader"})
        assert set(watcher.history()) == {""} and set(watcher.activity()) == {""}
        over_tcp = ["--address", proxy.address, "--keys", str(keys / "client")]
        assert parse(["top", *over_tcp, "--once", "--interval-s", "0.2"]).run() == 0
        assert parse(["bundle", str(tmp_path / "it.zip"), *over_tcp, "--seconds", "0"]).run() == 0
        assert read_bundle(tmp_path / "it.zip").configurations == {}
        with pytest.raises(UsageError, match="takes no orders over TCP"):
            watcher.kill("compute")
        watcher._monitors.kill("compute")  # as a client of another make would
        wait_until(lambda: proxy.counts.get("rejected") == 1)
        assert watcher.snapshot().restarts == {"compute": 0, "loader": 0}
        with Watcher(engine.address) as local:
            local.kill("compute")
            wait_until(lambda: watcher.snapshot().restarts["compute"] == 1)


def test_a_remote_watcher_without_an_allowed_key_is_told(proxy: LocalProxy, keys: Path, tmp_path: Path) -> None:
    new_client_keys(tmp_path / "other", keys / "server" / "server.key")
    with Watcher(proxy.address, tmp_path / "other") as watcher, pytest.raises(EngineError, match="does not know"):
        watcher.snapshot()


def test_a_door_without_anybody_who_checks_keys_is_shut(keys: Path) -> None:
    """ZeroMQ by itself lets everybody in whom no one refuses."""
    context = zmq.Context()
    with bind("127.0.0.1", 0) as listener:
        listener.setblocking(False)
        address = url_of(listener, "tcp://")
        server = open_server_socket(context, read_server_pair(keys / "server"), os.dup(listener.fileno()))
        server.bind(address)
        client = open_client_socket(context, read_client_keys(keys / "client"))
        client.connect(address)
        client.send_multipart([b"clients", b"x"])
        assert not server.poll(1000)
        context.destroy(linger=0)

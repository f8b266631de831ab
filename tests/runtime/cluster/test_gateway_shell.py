"""The gateway with real schedulers behind it: clients of an engine use it unchanged, and losses do not show."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, closing
from functools import partial
from pathlib import Path

import pytest
from expertflow.configs.schema import Config
from expertflow.errors import RequestError
from expertflow.ipc.shared.rundir import RunDir
from expertflow.ipc.transport.router import Router as ClientSocket
from expertflow.runtime.client.async_client import AsyncClient
from expertflow.runtime.client.completions import Completion
from expertflow.runtime.cluster.gateway import shell as shell_module
from expertflow.runtime.cluster.gateway.bridge import Bridge
from expertflow.runtime.cluster.gateway.shell import GatewayShell
from expertflow.runtime.cluster.gateway.state import Gateway
from expertflow.runtime.cluster.routing.router import Router
from expertflow.runtime.cluster.routing.rules import make_rule
from expertflow.tests.runtime.openai.models import VOCABULARY, save_model
from expertflow.tests.scheduler.fake_engine import FakeEngine
from expertflow.tests.scheduler.test_unread import SlowClient

LIMIT_S = 60.0


class LocalCluster:
    """A gateway in this event loop, and bridges to schedulers on this machine in place of Ray."""

    def __init__(self, shell: GatewayShell) -> None:
        self.shell = shell
        self._bridges: dict[str, Bridge] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def add(self, name: str, address: str) -> None:
        bridge = self._bridges[name] = Bridge(address)
        self.shell.connect(name, bridge)
        task = asyncio.create_task(self._listen(name, bridge))
        self._tasks.add(task)

    async def _listen(self, name: str, bridge: Bridge) -> None:
        async for frames in bridge.frames():
            self.shell.receive(name, frames)
        self.shell.lose(name)

    def cut(self, name: str) -> None:
        """Lose a replica: nothing more is heard of it."""
        self._bridges[name].close()

    async def close(self) -> None:
        for bridge in self._bridges.values():
            bridge.close()
        await asyncio.gather(*self._tasks)
        self.shell.close()


@asynccontextmanager
async def local_cluster() -> AsyncIterator[LocalCluster]:
    gateway = Gateway(Router(make_rule("two-choices")), prefix=f"{uuid.uuid4().hex}-")
    cluster = LocalCluster(GatewayShell(gateway, RunDir.create()))
    try:
        yield cluster
    finally:
        await cluster.close()


def run_with(
    tmp_path: Path, count: int, body: Callable[[LocalCluster, AsyncClient, list[FakeEngine]], Awaitable[None]]
) -> None:
    """Run `body` with a gateway to `count` schedulers with fake compute."""
    model = save_model(tmp_path)
    config = Config(kv_memory="100KB", batch_size=4, queue_limit=100)

    async def main(engines: list[FakeEngine]) -> None:
        async with local_cluster() as cluster, asyncio.timeout(LIMIT_S):
            for number, engine in enumerate(engines):
                cluster.add(f"replica-{number}", engine.address)
            async with AsyncClient(cluster.shell.address) as client:
                await body(cluster, client, engines)

    with (
        FakeEngine(model, config, vocabulary=VOCABULARY) as one,
        FakeEngine(model, config, vocabulary=VOCABULARY) as two,
    ):
        asyncio.run(main([one, two][:count]))


def outputs(completions: list[Completion]) -> list[list[int]]:
    return [completion.token_ids for completion in completions]


def test_a_client_gets_through_the_gateway_what_an_engine_gives(tmp_path: Path) -> None:
    async def body(cluster: LocalCluster, client: AsyncClient, engines: list[FakeEngine]) -> None:
        assert client.model.batch_size == 4 and client.model.vocabulary == VOCABULARY
        prompts = [[5 + number, 6, 7] for number in range(12)]
        async with AsyncClient(engines[0].address) as direct:
            expected = await direct.generate(prompts, max_new_tokens=6, seed=7)
        assert outputs(await client.generate(prompts, max_new_tokens=6, seed=7)) == outputs(expected)

    run_with(tmp_path, 1, body)


def test_streams_go_on_at_the_other_replica(tmp_path: Path) -> None:
    async def body(cluster: LocalCluster, client: AsyncClient, engines: list[FakeEngine]) -> None:
        prompts = [[5 + number, 9] for number in range(8)]
        expected = outputs(await client.generate(prompts, max_new_tokens=24, seed=7))
        got: dict[int, list[int]] = {number: [] for number in range(8)}
        engines[0].steps_left = 6  # its streams are under way when it is lost, however fast it is
        batch = await client.submit(prompts, max_new_tokens=24, seed=7)
        async for event in batch:
            got[event.index] += event.token_ids
            if sum(map(len, got.values())) > 20 and len(cluster.shell.gateway.router.fleet) == 2:
                cluster.cut("replica-0")
        assert [got[number] for number in range(8)] == expected == outputs(await batch.results())
        assert cluster.shell.gateway.moved > 0

    run_with(tmp_path, 2, body)


def test_a_drained_replica_runs_nothing_more(tmp_path: Path) -> None:
    async def body(cluster: LocalCluster, client: AsyncClient, engines: list[FakeEngine]) -> None:
        prompts = [[5 + number, 9] for number in range(8)]
        expected = outputs(await client.generate(prompts, max_new_tokens=24, seed=7))
        batch = await client.submit(prompts, max_new_tokens=24, seed=7)
        await batch.wait_until_started()
        cluster.shell.drain("replica-1")
        assert outputs(await batch.results()) == expected
        fleet = cluster.shell.gateway.router.fleet
        assert fleet.outstanding[fleet.index("replica-1")] == 0 and not fleet.open[fleet.index("replica-1")]

    run_with(tmp_path, 2, body)


def test_requests_wait_for_a_replica_while_there_is_none(tmp_path: Path) -> None:
    async def body(cluster: LocalCluster, client: AsyncClient, engines: list[FakeEngine]) -> None:
        cluster.cut("replica-0")
        batch = await client.submit([[5, 6]], max_new_tokens=4, seed=7)
        while len(cluster.shell.gateway.router.fleet):
            await asyncio.sleep(0.01)
        cluster.add("replica-1", engines[0].address)
        (done,) = await batch.results()
        assert len(done.token_ids) == 4

    run_with(tmp_path, 1, body)


def test_a_request_that_no_replica_can_run_is_refused_as_by_an_engine(tmp_path: Path) -> None:
    async def body(cluster: LocalCluster, client: AsyncClient, engines: list[FakeEngine]) -> None:
        with pytest.raises(RequestError):
            await client.generate([[5] * 100_000], max_new_tokens=4, seed=7)

    run_with(tmp_path, 1, body)


def test_a_client_that_goes_takes_its_requests_along(tmp_path: Path) -> None:
    async def body(cluster: LocalCluster, client: AsyncClient, engines: list[FakeEngine]) -> None:
        async with AsyncExitStack() as stack:
            other = await stack.enter_async_context(AsyncClient(cluster.shell.address))
            await (await other.submit([[5, 6]] * 20, max_new_tokens=200, seed=7)).wait_until_started()
        while cluster.shell.gateway.book.open:
            await asyncio.sleep(0.01)
        assert not cluster.shell.gateway.router.fleet.outstanding.any()

    run_with(tmp_path, 1, body)


def test_two_gateways_to_one_engine_do_not_take_each_others_requests(tmp_path: Path) -> None:
    """An engine knows requests by their ids alone: equal ones would be refused, or answered with the other's output."""

    async def body(cluster: LocalCluster, client: AsyncClient, engines: list[FakeEngine]) -> None:
        async with local_cluster() as second, AsyncExitStack() as stack:
            second.add("replica-0", engines[0].address)
            other = await stack.enter_async_context(AsyncClient(second.shell.address))
            mine, others = [[5, 6]] * 4, [[7, 8]] * 4
            got = await asyncio.gather(client.generate(mine, 6, seed=1), other.generate(others, 6, seed=1))
            async with AsyncClient(engines[0].address) as direct:
                assert outputs(got[0]) == outputs(await direct.generate(mine, 6, seed=1))
                assert outputs(got[1]) == outputs(await direct.generate(others, 6, seed=1))

    run_with(tmp_path, 1, body)


def test_a_client_that_reads_again_is_told_what_the_gateway_dropped_and_can_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As an engine does: `busy`, and with the tokens that it has it loses nothing. Other clients notice nothing."""
    monkeypatch.setattr(shell_module, "ClientSocket", partial(ClientSocket, high_water=5))

    async def body(cluster: LocalCluster, client: AsyncClient, engines: list[FakeEngine]) -> None:
        engines[0].paused.set()
        with closing(SlowClient(cluster.shell.address)) as slow:
            slow.submit("one")
            assert (await asyncio.to_thread(slow.receive)) == {"type": "Accepted", "request_id": "one"}
            while cluster.shell.gateway.book.open:
                slow.say(type="Hello")
                await asyncio.sleep(0)
            assert caplog.text.count("a client left 5 answers unread: 1 requests were dropped") == 1
            engines[0].paused.clear()
            (done,) = await client.generate([[5]], max_new_tokens=20, eos_ids=[], temperature=0.0)
            refused = await asyncio.to_thread(slow.receive_end, "one")
            assert refused["type"] == "Refused" and refused["error"]["code"] == "busy"
            slow.submit("one", resume_ids=done.token_ids[:3])
            finished = await asyncio.to_thread(slow.receive_end, "one")
            assert finished["type"] == "Finished" and finished["token_ids"][:3] == done.token_ids[:3]
            assert len(finished["token_ids"]) == 20

    with caplog.at_level(logging.WARNING):
        run_with(tmp_path, 1, body)

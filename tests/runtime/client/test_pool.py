"""The pool of engines: driven by its descriptor alone, and one client over several engines.

Real sockets and the real scheduler, with a fake compute.
"""

from __future__ import annotations

import asyncio
import select
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from expertflow import AsyncClient, Client
from expertflow.configs.schema import Config
from expertflow.errors import EngineError
from expertflow.ipc.messages import Sampling, Submit
from expertflow.ipc.shared.rundir import ENGINES, RunDir
from expertflow.runtime.client.connection import EngineConnection
from expertflow.runtime.client.pool import EnginePool
from expertflow.runtime.client.request import BatchUpdates, ClientRequest
from expertflow.tests.runtime.fakes import wait_until
from expertflow.tests.scheduler.fake_compute import continuation
from expertflow.tests.scheduler.fake_engine import FakeEngine

TOKENS = 20
PROMPTS = [[1 + i] for i in range(24)]
EXPECTED = [continuation(prompt, TOKENS, Sampling(seed=i)) for i, prompt in enumerate(PROMPTS)]


class FakeGroup:
    """Two engines in the run directory of a group, as `EngineGroup` makes them."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        run_dir = RunDir.create()
        stack.callback(run_dir.close)
        self.address = str(run_dir.path)
        base = run_dir.path / ENGINES
        base.mkdir(mode=0o700)
        config = Config(kv_memory="100KB", batch_size=2)
        self.engines = [stack.enter_context(FakeEngine(folder, config, base=base)) for _ in range(2)]

    def kill(self, number: int) -> None:
        """The whole engine, without a word."""
        self.engines[number].kill_scheduler()
        self.engines[number].run_dir.close()

    def ran(self, number: int) -> int:
        """Steps of this engine."""
        return sum(len(compute.ran) for compute in self.engines[number].computes)


@pytest.fixture
def group(tmp_path: Path) -> Iterator[FakeGroup]:
    with ExitStack() as stack:
        yield FakeGroup(tmp_path, stack)


def results(client: Client, first_tokens: int = 0, then: object = None) -> list[list[int]]:
    batch = client.submit(PROMPTS, TOKENS, temperature=1.0, seed=0, eos_ids=[])
    for event in batch:
        first_tokens -= len(event.token_ids)
        if callable(then) and first_tokens < 0:
            then()
            then = None
    return [done.token_ids for done in batch.results(timeout_s=30)]


def drive(pool: EnginePool, reached: Callable[[], bool], patience_ms: int = 10_000) -> None:
    """As any event loop would: wait for the descriptor, or for the deadline that the pool names."""
    poll = select.poll()
    poll.register(pool.fileno(), select.POLLIN)
    while not reached():
        deadline_ns = pool.next_deadline()
        left_ms = patience_ms if deadline_ns is None else -(-(deadline_ns - time.monotonic_ns()) // 1_000_000)
        if poll.poll(max(0, left_ms)):
            pool.on_readable()
        else:
            assert deadline_ns is not None, "nothing came"
            pool.on_deadline()


def make_requests(count: int, tokens: int = TOKENS) -> list[ClientRequest]:
    updates = BatchUpdates()
    return [
        ClientRequest(
            i,
            Submit(request_id=f"{i}", prompt_ids=[1 + i], max_new_tokens=tokens, sampling=Sampling(seed=i), eos_ids=[]),
            updates,
        )
        for i in range(count)
    ]


def idle(pool: EnginePool) -> bool:
    """Return whether the greeting is handled and the pool waits for nothing.

    A greeting that arrives during a send leaves the pool a last look to take, and until then its deadline is "at once".
    """
    return pool.welcome is not None and pool.next_deadline() is None


@pytest.fixture
def lone(tmp_path: Path) -> Iterator[tuple[FakeEngine, EnginePool]]:
    with FakeEngine(tmp_path) as engine:
        pool = EnginePool(engine.address, 60)
        drive(pool, lambda: idle(pool))
        yield engine, pool
        pool.close()


def test_a_descriptor_is_all_that_a_driver_needs(lone: tuple[FakeEngine, EnginePool]) -> None:
    """An HTTP server or another event loop can drive a client."""
    _, pool = lone
    requests = make_requests(24)
    pool.submit(requests)
    drive(pool, lambda: all(request.ended for request in requests))
    assert [request.tokens for request in requests] == EXPECTED
    drive(pool, lambda: idle(pool))  # an idle pool wakes nobody


def stuck(pool: EnginePool) -> bool:
    """Whether a message is there that neither the descriptor nor a deadline tells of."""
    silent = not select.select([pool], [], [], 0)[0] and pool.next_deadline() != 0
    waiting = any(connection._link.socket.poll(0) for connection in pool._connections)
    return silent and waiting


def send_slowly(self: EngineConnection, now_ns: int) -> None:
    """Send, and let the answer come before the call returns: looking for it takes the descriptor's signal."""
    messages = self.session.due(now_ns)
    for message in messages:
        self._link.send(message)
    if messages:
        assert self._link.socket.poll(10_000)


def forget_to_look_again(self: EnginePool) -> None:
    """Mutant: messages are taken in before sending only."""
    now_ns = time.monotonic_ns()
    self._receive(now_ns)
    self._check_when_due(now_ns)
    self._send(now_ns)


@pytest.mark.parametrize("mutant", [None, forget_to_look_again])
def test_a_signal_that_a_send_has_taken_is_not_missed(
    lone: tuple[FakeEngine, EnginePool], mutant: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ZeroMQ's descriptor is edge-triggered: what arrives during a send would lie there for ever."""
    engine, pool = lone
    engine.paused.set()
    monkeypatch.setattr(EngineConnection, "send_due", send_slowly)
    if mutant:
        monkeypatch.setattr(EnginePool, "_advance", mutant)
    requests = make_requests(1)
    pool.submit(requests)
    assert stuck(pool) == bool(mutant)
    monkeypatch.undo()
    engine.paused.clear()
    pool.on_readable()
    drive(pool, lambda: requests[0].ended)


def test_calls_without_need_do_no_harm(lone: tuple[FakeEngine, EnginePool]) -> None:
    """Drivers may be woken for nothing."""
    _, pool = lone
    requests = make_requests(3)
    pool.submit(requests)
    while not all(request.ended for request in requests):
        pool.on_deadline()
        pool.on_readable()
    assert [request.tokens for request in requests] == EXPECTED[:3]
    pool.cancel(requests)
    pool.close()
    pool.close()


def test_a_batch_is_spread_and_comes_back_in_order(group: FakeGroup) -> None:
    """Seeds belong to the prompt's place in the batch, not to an engine."""
    with Client(group.address) as client:
        assert results(client) == EXPECTED
    assert min(group.ran(0), group.ran(1)) > TOKENS


def test_an_engine_that_does_nothing_keeps_only_what_it_was_handed(group: FakeGroup) -> None:
    """Half of a batch given to it at once would wait as long as it pleases."""
    group.engines[0].paused.set()
    with Client(group.address) as client:
        batch = client.submit(PROMPTS, TOKENS, eos_ids=[])
        ended = 0
        for event in batch:
            ended += event.finish_reason is not None
            if ended == len(PROMPTS) - 4:
                group.engines[0].paused.clear()
        assert len(batch.results()) == len(PROMPTS)


def test_a_dead_engines_requests_go_on_at_the_other(group: FakeGroup, caplog: pytest.LogCaptureFixture) -> None:
    """I4: also those of which tokens were delivered; who asked sees nothing but a line in the log."""
    with Client(group.address) as client:
        assert results(client, 100, lambda: group.kill(0)) == EXPECTED
        assert "go on at the others" in caplog.text
        group.kill(1)
        with pytest.raises(EngineError, match="the engine has ended"):
            results(client)


def test_an_asyncio_client_loses_no_request_with_an_engine(group: FakeGroup) -> None:
    async def main() -> None:
        async with AsyncClient(group.address) as client:
            batch = await client.submit(PROMPTS, TOKENS, temperature=1.0, seed=0, eos_ids=[])
            killed = False
            async for event in batch:
                if not killed and event.finish_reason:
                    killed = True
                    await asyncio.to_thread(group.kill, 0)
            assert [done.token_ids for done in await batch.results()] == EXPECTED

    asyncio.run(asyncio.wait_for(main(), 30))


def test_requests_of_an_engine_that_is_stopped_go_on_at_the_other(group: FakeGroup) -> None:
    """Its scheduler refuses them in good order, before its run directory is gone."""
    with Client(group.address) as client:
        assert results(client, 100, lambda: group.engines[0].kill_scheduler(silent=False)) == EXPECTED


def test_a_restarted_scheduler_keeps_its_requests(group: FakeGroup) -> None:
    """A pause is no end: the engine goes on with what it had."""

    def restart() -> None:
        group.engines[1].kill_scheduler()
        group.engines[1].start_scheduler()

    with Client(group.address) as client:
        assert results(client, 100, restart) == EXPECTED
        wait_until(lambda: group.ran(1) > TOKENS)


def test_a_group_whose_engines_have_ended_has_nobody_to_talk_to(group: FakeGroup) -> None:
    for number in (0, 1):
        group.kill(number)
    with pytest.raises(EngineError, match="all engines of the group have ended"):
        Client(group.address)

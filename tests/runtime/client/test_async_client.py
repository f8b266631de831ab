"""The asyncio client against the real scheduler over real sockets, with a fake compute."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from expertflow import AsyncBatch, AsyncClient, Client, Completion, NotDoneInTime, Request
from expertflow.configs.schema import Config
from expertflow.errors import BusyError, EngineError, RequestError, UsageError
from expertflow.ipc.messages import Sampling
from expertflow.runtime.client.connection import EngineConnection
from expertflow.runtime.client.state import ClientState
from expertflow.tests.runtime.client.test_text import save_byte_tokenizer
from expertflow.tests.runtime.fakes import wait_until
from expertflow.tests.scheduler.fake_compute import continuation
from expertflow.tests.scheduler.fake_engine import FakeEngine

PATIENCE_S = 60
SECOND_NS = 10**9


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[FakeEngine]:
    with FakeEngine(tmp_path) as engine:
        yield engine


def run(engine: FakeEngine, test: Callable[[AsyncClient], Awaitable[None]], **options: Any) -> None:
    """Run a coroutine with a connected client in an event loop of its own; nothing may take for ever."""

    async def main() -> None:
        async with asyncio.timeout(PATIENCE_S), AsyncClient(engine.address, **options) as client:
            await test(client)

    asyncio.run(main(), debug=True)


def outputs(prompts: list[list[int]], count: int, seed: int = 0) -> list[list[int]]:
    """What a batch of these prompts gives; request i samples with seed + i."""
    return [continuation(prompt, count, Sampling(seed=seed + i)) for i, prompt in enumerate(prompts)]


def idle(engine: FakeEngine) -> bool:
    """Whether the engine has no request."""
    if engine.shell is None:
        return False
    statistics = engine.shell._state.statistics()
    return statistics.accepted == statistics.done + statistics.abandoned


def test_generate_gives_completions_in_order(engine: FakeEngine) -> None:
    async def test(client: AsyncClient) -> None:
        prompts = [[1 + i] * (1 + i % 4) for i in range(20)]
        done = await client.generate(prompts, 6, eos_ids=[], temperature=1.0, seed=3)
        for prompt, completion in zip(prompts, done, strict=True):
            assert completion.prompt_ids == prompt and completion.finish_reason == "length"
        assert [completion.token_ids for completion in done] == outputs(prompts, 6, seed=3)
        assert client.model.context == 64

    run(engine, test)


def test_many_tasks_share_a_client(engine: FakeEngine) -> None:
    """Streams, results and single generations at the same time, each with its own tokens."""

    async def stream(client: AsyncClient, start: int) -> None:
        seen: list[list[int]] = [[], []]
        async for event in await client.submit([[start], [start, 1]], 20, eos_ids=[], seed=0):
            seen[event.index] += event.token_ids
        assert seen == outputs([[start], [start, 1]], 20)

    async def generate(client: AsyncClient, start: int) -> None:
        [done] = await client.generate([[start]], 20, eos_ids=[], seed=0)
        assert [done.token_ids] == outputs([[start]], 20)

    async def test(client: AsyncClient) -> None:
        async with asyncio.TaskGroup() as group:
            for start in range(1, 16):
                group.create_task(stream(client, start))
                group.create_task(generate(client, start))

    run(engine, test)


def test_events_of_several_batches_come_in_one_iteration(engine: FakeEngine) -> None:
    async def test(client: AsyncClient) -> None:
        batches = [await client.submit([[i], [i, i]], 10, eos_ids=[], seed=0) for i in (1, 2, 3)]
        seen: dict[AsyncBatch, list[list[int]]] = {batch: [[], []] for batch in batches}
        async for batch, event in client.events(*batches):
            seen[batch][event.index] += event.token_ids
        for i, batch in enumerate(batches, 1):
            assert seen[batch] == outputs([[i], [i, i]], 10)

    run(engine, test)


@pytest.mark.parametrize("awaiting", ["generate", "results", "event"])
def test_a_cancelled_task_cancels_its_requests(engine: FakeEngine, awaiting: str) -> None:
    """Nobody waits for them any more: they must not keep the engine busy. Others are not disturbed."""
    engine.paused.set()

    async def work(client: AsyncClient) -> None:
        if awaiting == "generate":
            await client.generate([[1]] * 300, 50, eos_ids=[])
        batch = await client.submit([[1]] * 300, 50, eos_ids=[])
        if awaiting == "results":
            await batch.results()
        async for _ in batch:
            pass

    async def test(client: AsyncClient) -> None:
        other = await client.submit([[2]], 3, eos_ids=[], seed=0)
        task = asyncio.create_task(work(client))
        while engine.shell is None or engine.shell._state.statistics().accepted < 2:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        while engine.shell._state.statistics().queue:
            await asyncio.sleep(0.01)
        engine.paused.clear()
        assert [done.token_ids for done in await other.results()] == outputs([[2]], 3)
        assert idle(engine)

    run(engine, test)


def test_the_first_token_is_waited_for(engine: FakeEngine) -> None:
    engine.paused.set()

    async def test(client: AsyncClient) -> None:
        batch = await client.submit([[1]], 3, eos_ids=[])
        assert not await batch.wait_until_started(0.05) and batch.under_way == 1
        engine.paused.clear()
        assert await batch.wait_until_started()
        await batch.results()
        assert batch.started and batch.under_way == 0

    run(engine, test)


def test_leaving_a_batchs_context_cancels_what_is_open(engine: FakeEngine) -> None:
    """For a server whose reader goes away in the middle of its answer."""

    async def test(client: AsyncClient) -> None:
        async with await client.submit([[1]], 1000, eos_ids=[]) as batch:
            async for _ in batch:
                break
        assert (await batch.results())[0].finish_reason == "cancelled"

    run(engine, test)


def test_one_request_of_a_batch_is_cancelled(engine: FakeEngine) -> None:
    engine.paused.set()

    async def test(client: AsyncClient) -> None:
        batch = await client.submit([[1], [2], [3]], 3, eos_ids=[])
        batch.cancel(1)
        with pytest.raises(RequestError, match="3 is no request of a batch of 3"):
            batch.cancel(3)
        engine.paused.clear()
        assert [done.finish_reason for done in await batch.results()] == ["length", "cancelled", "length"]

    run(engine, test)


def test_results_gives_up_in_time_and_the_batch_goes_on(engine: FakeEngine) -> None:
    """A timeout of ours is no cancellation."""
    engine.paused.set()

    async def test(client: AsyncClient) -> None:
        batch = await client.submit([[1]], 3, eos_ids=[], seed=0)
        for timeout_s in (0.05, 0):
            with pytest.raises(NotDoneInTime, match="1 of 1"):
                await batch.results(timeout_s)
        engine.paused.clear()
        assert [done.token_ids for done in await batch.results(PATIENCE_S)] == outputs([[1]], 3)

    run(engine, test)


def test_deadlines_pass_without_a_message(engine: FakeEngine) -> None:
    """Only the client's own clock ends a request that was never sent."""
    engine.paused.set()

    async def test(client: AsyncClient) -> None:
        done = await client.generate([[1]] * 300, deadline_s=0.1)
        assert {completion.finish_reason for completion in done} == {"deadline"}

    run(engine, test)


def test_errors_are_results_or_raised(engine: FakeEngine) -> None:
    async def test(client: AsyncClient) -> None:
        batch = await client.submit([[1], [], [99]], 3, eos_ids=[])
        results = await batch.results(return_errors=True)
        assert [isinstance(result, Completion) for result in results] == [True, False, False]
        with pytest.raises(RequestError, match="is empty"):
            await batch.results()
        with pytest.raises(RequestError, match="max_new_tokens"):
            await client.submit([[1]], 0)
        with pytest.raises(UsageError, match=r"\[prompt\]"):
            await client.generate("abc")

    run(engine, test)


def test_a_busy_engine_is_tried_again(tmp_path: Path) -> None:
    """Without a message from it: only a timer wakes the client."""
    with FakeEngine(tmp_path, Config(queue_limit=2, kv_memory="100KB", batch_size=1)) as engine:
        engine.paused.set()

        async def test(client: AsyncClient) -> None:
            mine = await client.submit([[1]] * 8, 2, eos_ids=[])
            async with AsyncClient(engine.address) as late, AsyncClient(engine.address) as hurried:
                theirs = await late.submit([[2]] * 3, 2, eos_ids=[])
                while engine.shell is None or engine.shell._state.statistics().queue < 2:
                    await asyncio.sleep(0.01)
                refused = await hurried.submit([[2]] * 3, 2, eos_ids=[], wait_when_busy=False)
                errors = await refused.results(return_errors=True)
                assert all(isinstance(error, BusyError) for error in errors)
                engine.paused.clear()
                assert len(await theirs.results()) == 3 and len(await mine.results()) == 8

        run(engine, test)


def test_requests_survive_the_schedulers_death(engine: FakeEngine) -> None:
    """As with the blocking client: nothing is lost, nothing is delivered twice."""

    async def test(client: AsyncClient) -> None:
        batch = await client.submit([[i] for i in range(20)], 40, eos_ids=[], seed=1, temperature=1.0)
        seen: dict[int, list[int]] = {i: [] for i in range(20)}
        kills = 0
        async for event in batch:
            seen[event.index] += event.token_ids
            if kills < 2 and len(seen[5 * kills]) > 5:
                kills += 1
                await asyncio.to_thread(engine.kill_scheduler)
                await asyncio.to_thread(engine.start_scheduler)
        assert kills == 2
        assert seen == {i: continuation([i], 40, Sampling(seed=1 + i)) for i in range(20)}

    run(engine, test)


def test_a_dead_engine_is_an_error_not_a_hang(tmp_path: Path) -> None:
    """Whoever waits gets the error, in whichever task."""

    async def main() -> None:
        with FakeEngine(tmp_path) as engine:
            client = AsyncClient(engine.address)
            await client.connect()
            engine.paused.set()
            batch = await client.submit([[1]], 3)
            waiting = [asyncio.create_task(batch.results()), asyncio.create_task(client.generate([[2]]))]
            await asyncio.sleep(0.05)
            await asyncio.to_thread(engine.kill_scheduler)
        for outcome in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(outcome, EngineError)
        assert [event.error is not None async for event in batch] == [True]
        with pytest.raises(EngineError):
            await client.submit([[1]])
        with pytest.raises(EngineError):
            await client.stats()
        await client.close()

    asyncio.run(asyncio.wait_for(main(), PATIENCE_S))


def test_a_silent_scheduler_is_an_error_in_the_end(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(client: AsyncClient) -> None:
        pool = client._driver.state.pool
        pool._checked_ns -= 100 * SECOND_NS  # idle time is no silence
        await client.generate([[1]], 2)
        await asyncio.to_thread(engine.kill_scheduler)
        monkeypatch.setattr("expertflow.runtime.client.pool.CHECK_EVERY_NS", SECOND_NS // 20)
        pool._connections[0]._answer_timeout_ns = SECOND_NS // 5
        with pytest.raises(EngineError, match="not answered"):
            await client.generate([[1]])

    monkeypatch.setattr("expertflow.runtime.client.pool.CHECK_EVERY_NS", 10 * SECOND_NS)
    run(engine, test, answer_timeout_s=9)


def test_connecting_where_no_engine_answers_raises(tmp_path: Path) -> None:
    async def main() -> None:
        client = AsyncClient(tmp_path / "nowhere")
        with pytest.raises(EngineError, match="not connected"):
            await client.submit([[1]])
        with pytest.raises(EngineError, match="no engine"):
            await client.connect()
        await client.close()

    asyncio.run(main())


def test_an_engine_that_does_not_answer_yet(engine: FakeEngine) -> None:
    async def main() -> None:
        engine.kill_scheduler()
        with pytest.raises(EngineError, match="no answer within"):
            await AsyncClient(engine.address, connect_timeout_s=0.05).connect()

    asyncio.run(main())


def test_closing_ends_every_wait(engine: FakeEngine) -> None:
    """A task that waits for a closed client would wait for ever."""
    engine.paused.set()

    async def main() -> None:
        client = AsyncClient(engine.address)
        await client.connect()
        batch = await client.submit([[1]])

        async def read() -> None:
            async for _ in batch:
                pass

        waiting = [asyncio.create_task(each) for each in (batch.results(), read(), client.stats())]
        await asyncio.sleep(0.05)
        await client.close()
        await client.close()
        for outcome in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(outcome, EngineError) and "closed" in str(outcome)
        batch.cancel()
        for late in (client.submit([[1]]), client.stats(), batch.results(), client.chat_ids("late")):
            with pytest.raises(EngineError, match="closed"):
                await late
        with pytest.raises(UsageError, match="connected before"):
            await client.connect()

    asyncio.run(asyncio.wait_for(main(), PATIENCE_S))
    wait_until(lambda: idle(engine))


def test_a_client_belongs_to_one_event_loop(engine: FakeEngine) -> None:
    """Its timers and callbacks would run in a loop that may have stopped."""

    async def connected() -> AsyncClient:
        client = AsyncClient(engine.address)
        await client.connect()
        return client

    with asyncio.Runner() as first:
        client = first.run(connected())
        with asyncio.Runner() as second, pytest.raises(UsageError, match="another event loop"):
            second.run(client.generate([[1]]))
        first.run(client.close())


def test_the_event_loop_goes_on_while_requests_run(engine: FakeEngine) -> None:
    """Neither a wait for tokens nor one for a snapshot (here of no supervisor) may hold up other tasks."""
    engine.paused.set()

    async def test(client: AsyncClient) -> None:
        batch = await client.submit([[1]], 2)
        for wait in (batch.results(PATIENCE_S / 3), client.stats(PATIENCE_S / 3)):
            waiting = asyncio.create_task(wait)
            for _ in range(50):
                await asyncio.sleep(0.001)
            assert not waiting.done()
            waiting.cancel()
            await asyncio.wait([waiting])
        with pytest.raises(EngineError, match="gave no snapshot"):
            await client.stats(0.2)
        engine.paused.clear()

    run(engine, test)


def test_an_idle_client_sleeps(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of idle clients in a server must cost nothing (counted, not timed)."""

    async def test(client: AsyncClient) -> None:
        await client.generate([[1]], 2)
        await asyncio.sleep(0.6)  # a check may still be due
        calls = 0
        pool, advance = client._driver.state.pool, client._driver.state.pool._advance

        def counted() -> None:
            nonlocal calls
            calls += 1
            advance()

        monkeypatch.setattr(pool, "_advance", counted)
        await asyncio.sleep(0.7)
        assert calls == 0

    run(engine, test)


@asynccontextmanager
async def text_client(folder: Path) -> AsyncIterator[tuple[FakeEngine, AsyncClient]]:
    save_byte_tokenizer(folder)
    with FakeEngine(folder, vocabulary=257) as engine:
        async with AsyncClient(engine.address) as client:
            yield engine, client


def test_texts_are_encoded_in_a_thread(tmp_path: Path) -> None:
    async def main() -> None:
        async with text_client(tmp_path) as (_, client):
            batch = await client.submit(["Hi", Request("Ho", max_new_tokens=3)], 5, eos_ids=[])
            texts = ["", ""]
            async for event in batch:
                texts[event.index] += event.text_delta
            done = await batch.results()
            assert [completion.text for completion in done] == texts
            assert [len(completion.token_ids) for completion in done] == [5, 3]

    asyncio.run(asyncio.wait_for(main(), PATIENCE_S))


@pytest.mark.parametrize("end", ["cancel", "close"])
def test_what_is_prepared_for_nobody_is_not_run(tmp_path: Path, end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The task that asked was cancelled, or the client closed, while a text was made into ids."""
    discarded: list[Any] = []

    async def main() -> None:
        started, go_on = asyncio.Event(), asyncio.Event()
        loop, prepare = asyncio.get_running_loop(), ClientState.prepare

        def slow(*arguments: Any) -> Any:
            loop.call_soon_threadsafe(started.set)
            asyncio.run_coroutine_threadsafe(go_on.wait(), loop).result(PATIENCE_S)
            return prepare(*arguments)

        monkeypatch.setattr(ClientState, "prepare", slow)
        monkeypatch.setattr(ClientState, "discard", lambda state, requests: discarded.append(len(requests)))
        async with text_client(tmp_path) as (engine, client):
            task = asyncio.create_task(client.generate(["Hi", "Ho"], eos_ids=[]))
            await started.wait()
            closing = asyncio.create_task(client.close()) if end == "close" else None
            if end == "cancel":
                task.cancel()
            await asyncio.sleep(0.05)
            go_on.set()
            with pytest.raises(asyncio.CancelledError if end == "cancel" else EngineError):
                await task
            if closing:
                await closing
            await asyncio.sleep(0.05)
            assert engine.shell is not None and engine.shell._state.statistics().accepted == 0

    asyncio.run(asyncio.wait_for(main(), PATIENCE_S))
    assert discarded == ([2] if end == "cancel" else [])


def test_both_clients_give_the_same_tokens(engine: FakeEngine) -> None:
    options: dict[str, Any] = {"temperature": 0.7, "seed": 5, "eos_ids": []}

    async def test(client: AsyncClient) -> None:
        with Client(engine.address) as blocking:
            expected = await asyncio.to_thread(blocking.generate, [[1], [2, 3]], 9, **options)
            done = await client.generate([[1], [2, 3]], 9, **options)
            assert [one.token_ids for one in done] == [one.token_ids for one in expected]

    run(engine, test)


def test_submissions_of_one_turn_are_sent_together(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    sends: list[int] = []
    real = EngineConnection.send_due

    def counted(connection: EngineConnection, now_ns: int) -> None:
        before = connection.session.open_count
        real(connection, now_ns)
        sends.append(before)

    async def test(client: AsyncClient) -> None:
        monkeypatch.setattr(EngineConnection, "send_due", counted)
        batches = await asyncio.gather(*(client.submit([[1 + i]], 3, eos_ids=[]) for i in range(5)))
        assert sends == [5] and all(batch.under_way for batch in batches)
        for batch in batches:
            await batch.results()

    run(engine, test)


def test_what_is_cancelled_before_it_was_sent_ends_at_once(engine: FakeEngine) -> None:
    async def test(client: AsyncClient) -> None:
        batch = await client.submit([[1], [2]], 3, eos_ids=[])
        batch.cancel(0)
        assert [done.finish_reason for done in await batch.results()] == ["cancelled", "length"]

    run(engine, test)

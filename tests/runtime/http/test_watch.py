"""A wait for updates of a batch: what ends it, and how often it looks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
from expertflow import AsyncBatch
from expertflow.errors import EngineError
from expertflow.ipc.messages import Submit, Timings
from expertflow.runtime.client.request import BatchUpdates, ClientRequest
from expertflow.runtime.http.stop_signal import StopSignal
from expertflow.runtime.http.watch import watching
from expertflow.runtime.text.codec import TextCodec
from starlette.requests import ClientDisconnect

PATIENCE_S = 20.0
SHORT_S = 0.02


class Scene:
    """A batch of one request and a client of HTTP that stays until `hang_up`."""

    def __init__(self, folder: Path) -> None:
        submit = Submit(request_id="a", prompt_ids=[1], max_new_tokens=9)
        self.request = ClientRequest(0, submit, BatchUpdates())
        self.closed, self.hang_up, self.stopping = False, asyncio.Event(), StopSignal()
        self.cancelled: list[ClientRequest] = []
        codec = TextCodec(str(folder))
        self.batch = AsyncBatch([self.request], self.request.updates, codec, self.cancelled.extend, lambda: self.closed)
        self.watching = watching(self.batch, self._receive, self.stopping)

    async def _receive(self) -> dict[str, str]:
        await self.hang_up.wait()
        return {"type": "http.disconnect"}

    def add_token(self) -> None:
        self.request.tokens.append(5)
        self.request.notify()

    def end(self) -> None:
        self.request.finish_reason, self.request.timings = "length", Timings(queued_ns=0, first_token_ns=0, total_ns=0)
        self.request.notify()


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run the test in an event loop."""

    @wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(test(*args, **kwargs))

    return run


async def turns(count: int = 5) -> None:
    """Let other tasks run."""
    for _ in range(count):
        await asyncio.sleep(0)


@in_loop
async def test_a_wait_for_the_end_is_not_resumed_by_tokens(tmp_path: Path) -> None:
    scene, looks = Scene(tmp_path), []

    def ended() -> bool:
        looks.append(scene.batch.done)
        return scene.batch.done

    async with scene.watching as watch:
        waiting = asyncio.create_task(watch.wait(ended))
        await turns()
        before = len(looks)
        for _ in range(10):
            scene.add_token()
            await turns()
        assert len(looks) == before + 10 and not waiting.done()
        scene.end()
        assert await asyncio.wait_for(waiting, PATIENCE_S)
    assert not scene.cancelled


@in_loop
async def test_silence_ends_a_wait_and_a_later_wait_has_its_whole_time(tmp_path: Path) -> None:
    scene, loop = Scene(tmp_path), asyncio.get_running_loop()
    async with scene.watching as watch:
        assert not await watch.wait(lambda: scene.batch.has_updates, SHORT_S)
        scene.add_token()
        assert await watch.wait(lambda: scene.batch.has_updates, SHORT_S)
        list(scene.batch.received())
        for wait_s in (SHORT_S, 3 * SHORT_S):
            begun_s = loop.time()
            assert not await watch.wait(lambda: scene.batch.has_updates, wait_s)
            assert loop.time() - begun_s >= wait_s


@in_loop
async def test_a_shorter_wait_does_not_last_as_long_as_an_earlier_one(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    async with scene.watching as watch:
        waiting = asyncio.create_task(watch.wait(lambda: scene.batch.has_updates, 2 * PATIENCE_S))
        await turns()
        scene.add_token()
        assert await waiting
        list(scene.batch.received())
        waiting = asyncio.create_task(watch.wait(lambda: scene.batch.has_updates, SHORT_S))
        assert not await asyncio.wait_for(waiting, PATIENCE_S)


@in_loop
async def test_a_timer_of_an_earlier_wait_does_not_end_a_later_one(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    async with scene.watching as watch:
        waiting = asyncio.create_task(watch.wait(lambda: scene.batch.has_updates, SHORT_S))
        await turns()
        scene.add_token()
        assert await waiting
        list(scene.batch.received())
        waiting = asyncio.create_task(watch.wait(lambda: scene.batch.has_updates))
        await asyncio.sleep(3 * SHORT_S)
        assert not waiting.done()
        scene.add_token()
        assert await asyncio.wait_for(waiting, PATIENCE_S)


@pytest.mark.parametrize("end", ["hang up", "stop", "close"])
@in_loop
async def test_what_ends_the_reply_ends_the_wait_and_the_batch(tmp_path: Path, end: str) -> None:
    scene = Scene(tmp_path)
    errors = {"hang up": ClientDisconnect, "stop": EngineError, "close": EngineError}
    with pytest.raises(errors[end]):
        async with scene.watching as watch:
            waiting = asyncio.create_task(watch.wait(lambda: scene.batch.done))
            await turns()
            match end:
                case "hang up":
                    scene.hang_up.set()
                case "stop":
                    scene.stopping.set()
                case _:
                    scene.closed = True
                    scene.batch.wake()
            await asyncio.wait_for(waiting, PATIENCE_S)
    assert scene.cancelled == [scene.request] and not scene.stopping.listeners

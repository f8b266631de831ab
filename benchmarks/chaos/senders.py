"""Send the requests of a round, each in its way, and note every piece and every end."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from expertflow import AsyncClient, Client
from expertflow.errors import ExpertFlowError
from expertflow.runtime.client import Completion, Event, Request

from ..serving.raw_client import post, read_stream
from .engine_process import EngineProcess
from .requests import Ended, PlannedRequest, Way

PATIENCE_S = 600.0
"""Seconds of silence after which a client takes the engine for dead: a starved machine takes its time."""
GROUP = 8
"""Requests that a client submits together."""
HTTP_OPEN = 8
"""Requests of each way over HTTP that are open at the same time."""


class Notes:
    """Ends and moments of tokens, from several threads."""

    def __init__(self) -> None:
        self.ended: list[Ended] = []
        self.token_times_s: list[float] = []

    def token(self) -> None:
        """Note that tokens came now."""
        self.token_times_s.append(time.monotonic())


class Senders:
    """Requests under way, in threads of their own; `done` says when all have ended, `result` raises what failed."""

    def __init__(self, engine: EngineProcess, ways: dict[Way, list[PlannedRequest]]) -> None:
        self.notes = Notes()
        self._pool = ThreadPoolExecutor(2, "sender")
        self._futures: list[Future[None]] = [
            self._pool.submit(_send_blocking, engine, ways["client"], self.notes),
            self._pool.submit(_send_async, engine, ways, self.notes),
        ]
        self._open = threading.Event()

    @property
    def done(self) -> bool:
        """Return whether all requests have ended."""
        return all(future.done() for future in self._futures)

    def wait(self, timeout_s: float) -> bool:
        """Wait for the end of all requests; return whether it came."""
        deadline_s = time.monotonic() + timeout_s
        while not self.done and time.monotonic() < deadline_s:
            self._open.wait(0.02)
        return self.done

    def result(self) -> Notes:
        """Return the notes of the whole round. Raises the error of a sender that could not go on."""
        self._pool.shutdown()
        for future in self._futures:
            future.result()
        return self.notes


def _send_blocking(engine: EngineProcess, requests: list[PlannedRequest], notes: Notes) -> None:
    with Client(engine.address, answer_timeout_s=PATIENCE_S) as client:
        for first in range(0, len(requests), GROUP):
            group = requests[first : first + GROUP]
            batch = client.submit([_options(each) for each in group])
            pieces = Pieces(group, "client")
            for event in batch:
                notes.token()
                pieces.add(event)
            notes.ended += pieces.ended(batch.results(return_errors=True))


def _send_async(engine: EngineProcess, ways: dict[Way, list[PlannedRequest]], notes: Notes) -> None:
    asyncio.run(_send_all(engine, ways, notes))


async def _send_all(engine: EngineProcess, ways: dict[Way, list[PlannedRequest]], notes: Notes) -> None:
    async with AsyncClient(engine.address, answer_timeout_s=PATIENCE_S) as client:
        bodies, streams = asyncio.Semaphore(HTTP_OPEN), asyncio.Semaphore(HTTP_OPEN)
        await asyncio.gather(
            _send_groups(client, ways["asyncio"], notes),
            *(_limited(bodies, _post(engine.port, each), notes) for each in ways["http"]),
            *(_limited(streams, _stream(engine.port, each), notes) for each in ways["stream"]),
        )


async def _send_groups(client: AsyncClient, requests: list[PlannedRequest], notes: Notes) -> None:
    for first in range(0, len(requests), GROUP):
        group = requests[first : first + GROUP]
        batch = await client.submit([_options(each) for each in group])
        pieces = Pieces(group, "asyncio")
        async for event in batch:
            notes.token()
            pieces.add(event)
        notes.ended += pieces.ended(await batch.results(return_errors=True))


async def _limited(limit: asyncio.Semaphore, sending: Any, notes: Notes) -> None:
    async with limit:
        notes.ended.append(await sending)


def _options(each: PlannedRequest) -> Request:
    ends: dict[str, Any] = {} if each.honours_end else {"eos_ids": []}
    options = {"temperature": each.temperature, "seed": each.seed, "max_new_tokens": each.max_new_tokens}
    return Request(each.prompt_ids, **options, **ends)


class Pieces:
    """Events of a batch put together."""

    def __init__(self, group: Sequence[PlannedRequest], way: Way) -> None:
        self._group = group
        self._way: Way = way
        self._ids: list[list[int]] = [[] for _ in group]
        self._ends = [0 for _ in group]

    def add(self, event: Event) -> None:
        """Take an event."""
        self._ids[event.index] += event.token_ids
        self._ends[event.index] += bool(event.finish_reason or event.error)

    def ended(self, results: Iterable[Completion | ExpertFlowError]) -> list[Ended]:
        """Return what became of each request of the batch."""
        return [self._ended(index, result) for index, result in enumerate(results)]

    def _ended(self, index: int, result: Completion | ExpertFlowError) -> Ended:
        number, streamed, ends = self._group[index].number, self._ids[index], self._ends[index]
        if isinstance(result, ExpertFlowError):
            return Ended(number, self._way, [], streamed, "", ends, str(result))
        return Ended(number, self._way, list(result.token_ids), streamed, result.text, ends)


def _body(each: PlannedRequest) -> dict[str, Any]:
    return {
        "model": "model",
        "prompt": each.prompt_ids,
        "max_tokens": each.max_new_tokens,
        "temperature": each.temperature,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "seed": each.seed,
        "ignore_eos": not each.honours_end,
        "return_token_ids": True,
    }


async def _post(port: int, each: PlannedRequest) -> Ended:
    try:
        [choice] = (await post(port, "/v1/completions", _body(each)))["choices"]
    except (RuntimeError, OSError, ValueError, IndexError) as error:
        return _failed(each, "http", error)
    return Ended(each.number, "http", choice["token_ids"], None, choice["text"], int(bool(choice["finish_reason"])))


async def _stream(port: int, each: PlannedRequest) -> Ended:
    try:
        stream = await read_stream(port, "/v1/completions", _body(each))
        choices = [choice for event in stream.events for choice in json.loads(event).get("choices", [])]
    except (RuntimeError, OSError, ValueError, IndexError) as error:
        return _failed(each, "stream", error)
    if stream.error or not stream.done:
        return _failed(each, "stream", RuntimeError(stream.error or "the stream broke off"))
    ids = [token for choice in choices for token in choice.get("token_ids") or []]
    text = "".join(choice["text"] for choice in choices)
    return Ended(each.number, "stream", ids, None, text, sum(bool(choice["finish_reason"]) for choice in choices))


def _failed(each: PlannedRequest, way: Way, error: Exception) -> Ended:
    return Ended(each.number, way, [], None, "", 0, f"{type(error).__name__}: {error}")

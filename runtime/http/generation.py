"""Runs the requests of a body and sends the answer, whole or as a stream, while it watches for a client that hangs up.

A plain handler is not told when its client goes (uvicorn only marks the connection), so a task waits for
`http.disconnect` beside the work. Whatever ends a reply, requests that still run are cancelled: their rows are free
for others after the step that runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from urllib.parse import quote

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Send

from ...errors import ExpertFlowError
from ..client.async_batch import AsyncBatch
from ..client.completions import Completion, Event
from ..openai.answers import PING
from ..openai.call import Call, ChunkWriter
from ..openai.endpoints import prepare_call
from ..openai.errors import ApiError
from .engine_link import EngineLink, gone
from .replies import JsonReply, read_json_body, start

IGNORED = "x-expertflow-ignored"
MAX_NAMED = 20
MAX_NAME = 64
"""Fields that the header names, and characters of each."""
"""Header with the names of fields that are in no list."""
STREAM_HEADERS = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache",
                  "x-accel-buffering": "no"}  # fmt: skip


class Watch:
    """Wakes for updates of a batch, for the client's hang-up, and for the end of the server."""

    def __init__(self, batch: AsyncBatch, receive: Receive, stopping: asyncio.Event) -> None:
        self._batch, self._stopping = batch, stopping
        self._changed = asyncio.Event()
        self._gone = False
        self._tasks = [asyncio.create_task(self._watch_client(receive)), asyncio.create_task(self._watch_server())]

    async def wait(self, reached: Callable[[], bool], timeout_s: float | None = None) -> bool:
        """Wait until `reached`; return False after `timeout_s`.

        Raises ClientDisconnect for a client that has hung up, EngineError at the end of the server.
        """
        loop = asyncio.get_running_loop()
        deadline = None if timeout_s is None else loop.time() + timeout_s
        timer = None if deadline is None else loop.call_at(deadline, self._changed.set)
        try:
            while not reached():
                self._raise_if_over()
                if deadline is not None and loop.time() >= deadline:
                    return False
                self._changed.clear()
                await self._changed.wait()
            return True
        finally:
            if timer is not None:
                timer.cancel()

    def open(self) -> None:
        """Begin to listen."""
        self._batch.listen(self._changed.set)

    async def close(self) -> None:
        """Stop listening, and cancel what still runs."""
        self._batch.ignore(self._changed.set)
        if not self._batch.done:
            self._batch.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _raise_if_over(self) -> None:
        if self._gone:
            raise ClientDisconnect
        if self._stopping.is_set():
            raise gone()
        self._batch.require_open()

    async def _watch_client(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            continue
        self._gone = True
        self._changed.set()

    async def _watch_server(self) -> None:
        await self._stopping.wait()
        self._changed.set()


async def generate(request: Request, send: Send, link: EngineLink, path: str) -> None:
    """Answer a body of `path`. Raises ApiError before the first byte, ClientDisconnect if the client has gone."""
    body = await read_json_body(request, link.spec.limits)
    model, client = link.model, link.client
    call = await link.in_thread(lambda: prepare_call(path, body, model))
    with link.admit(call):
        batch = await client.submit(call.requests)
        async with watching(batch, request.receive, link.stopping) as watch:
            reply = _stream if call.stream else _answer
            await reply(request, send, link, call, batch, watch)


@asynccontextmanager
async def watching(batch: AsyncBatch, receive: Receive, stopping: asyncio.Event) -> AsyncIterator[Watch]:
    """Yield a watch over a batch; at the end the batch is cancelled if it still runs."""
    watch = Watch(batch, receive, stopping)
    watch.open()
    try:
        yield watch
    finally:
        await watch.close()


async def _answer(
    request: Request, send: Send, link: EngineLink, call: Call, batch: AsyncBatch, watch: Watch
) -> None:
    try:
        await watch.wait(lambda: batch.done)
        completions = await batch.results()
    except ExpertFlowError as error:
        raise call.error(error) from error
    _count(link, completions)
    await JsonReply(call.answer(completions), headers=_headers(call))(request.scope, request.receive, send)


async def _stream(
    request: Request, send: Send, link: EngineLink, call: Call, batch: AsyncBatch, watch: Watch
) -> None:
    """Send a stream. An error before the first event has a status of its own; a later one is the last event."""
    writer, ping_s = call.writer(), link.spec.limits.ping_s
    try:
        came = await watch.wait(lambda: batch.has_updates or batch.done, ping_s)
        chunks = _chunks(batch, writer) if came else PING
    except ExpertFlowError as error:
        raise call.error(error) from error
    await send(start(200, STREAM_HEADERS | _headers(call)))
    link.counters.open_streams += 1
    try:
        await _send_all(send, batch, watch, writer, chunks, ping_s)
        completions = await batch.results()
        _count(link, completions)
        last = b"".join(writer.end(completions))
    except ExpertFlowError as error:
        last = error_event(call.error(error))
    finally:
        link.counters.open_streams -= 1
    await send({"type": "http.response.body", "body": last, "more_body": False})


async def _send_all(
    send: Send, batch: AsyncBatch, watch: Watch, writer: ChunkWriter, chunks: bytes, ping_s: float
) -> None:
    """Send chunks until the batch has ended; chunks of a step go out together."""
    while True:
        if chunks:
            await send({"type": "http.response.body", "body": chunks, "more_body": True})
        if batch.done and not batch.has_updates:
            return
        came = await watch.wait(lambda: batch.has_updates or batch.done, ping_s)
        chunks = _chunks(batch, writer) if came else PING


def _chunks(batch: AsyncBatch, writer: ChunkWriter) -> bytes:
    """Return what is new. Raises the first error of a request."""
    return b"".join(chunk for event in batch.received() for chunk in writer.on_event(_without_error(event)))


def _without_error(event: Event) -> Event:
    if event.error is not None:
        raise event.error
    return event


def error_event(error: ApiError) -> bytes:
    """Return an error as the last event of a stream."""
    return b"data: %s\n\n" % msgspec.json.encode(error.answer)


def _headers(call: Call) -> dict[str, str]:
    """Return the header that names ignored fields. The client chose the names: none may break the header or fill it."""
    named = [quote(name[:MAX_NAME]) for name in call.ignored[:MAX_NAMED]]
    more = [f"{len(call.ignored) - MAX_NAMED} more"] if len(call.ignored) > MAX_NAMED else []
    return {IGNORED: ", ".join([*named, *more])} if named else {}


def _count(link: EngineLink, completions: list[Completion]) -> None:
    link.counters.prompt_tokens += sum(len(completion.prompt_ids) for completion in completions)
    link.counters.output_tokens += sum(len(completion.token_ids) for completion in completions)

"""Runs the requests of a body and sends the answer, whole or as a stream, while it watches for a client that hangs up.

A plain handler is not told when its client goes (uvicorn only marks the connection), so a task waits for
`http.disconnect` beside the work. Whatever ends a reply, requests that still run are cancelled: their rows are free
for others after the step that runs.
"""

from __future__ import annotations

import asyncio
import logging
from urllib.parse import quote

import msgspec
from starlette.requests import Request
from starlette.types import Send

from ...errors import ExpertFlowError
from ..client.async_batch import AsyncBatch
from ..client.completions import Completion, Event
from ..openai.answers import PING
from ..openai.call import Call, ChunkWriter
from ..openai.endpoints import prepare_call, prepare_quick_call
from ..openai.errors import ApiError
from ..openai.model import ServedModel
from .engine_link import EngineLink
from .replies import JsonReply, read_json_body, start
from .users import user_of
from .watch import Watch, watching

DOMAIN = "x-expertflow-domain"
"""Header with a label of the prompts' kind, for the router of a cluster."""
IGNORED = "x-expertflow-ignored"
MAX_NAMED = 20
MAX_NAME = 64
"""Fields that the header names, and characters of each."""
"""Header with the names of fields that are in no list."""
STREAM_HEADERS = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache",
                  "x-accel-buffering": "no"}  # fmt: skip


async def generate(request: Request, send: Send, link: EngineLink, path: str) -> None:
    """Answer a body of `path`. Raises ApiError before the first byte, ClientDisconnect if the client has gone."""
    call = await _read_call(request, link, path)
    user = user_of(request, bool(link.spec.keys), link.salt)
    with link.admit(call, user):
        domain = request.headers.get(DOMAIN, "")[:MAX_NAME]
        batch = await link.client.submit(call.requests, user=user, domain=domain)
        async with watching(batch, request.receive, link.stopping) as watch:
            reply = _stream if call.stream else _answer
            await reply(request, send, link, call, batch, watch)


async def _read_call(request: Request, link: EngineLink, path: str) -> Call:
    """Return what a body asks for; the body itself is not kept. Raises ApiError, ClientDisconnect."""
    with link.room.body() as share:
        body, model = await read_json_body(request, link.spec.limits, share), link.model
        if link.spec.log.prompts:
            logging.getLogger(__name__).info("%s: %s", path, body.decode("utf-8", "replace"))
        return await _prepare(link, path, body, model)


async def _prepare(link: EngineLink, path: str, body: bytes, model: ServedModel) -> Call:
    """Return the requests of a body. Handing a small one to a thread costs more than reading it.

    While a thread works on a body, small ones wait for their turn too: two threads would take each other's time.
    """
    if link.threads_idle and (call := prepare_quick_call(path, body, model)) is not None:
        return call
    return await link.in_thread(lambda: prepare_call(path, body, model))


async def _answer(request: Request, send: Send, link: EngineLink, call: Call, batch: AsyncBatch, watch: Watch) -> None:
    try:
        await watch.wait(lambda: batch.done)
        completions = await batch.results()
    except ExpertFlowError as error:
        raise call.error(error) from error
    _count(link, completions)
    await JsonReply(call.answer(completions), headers=_headers(call))(request.scope, request.receive, send)


async def _stream(request: Request, send: Send, link: EngineLink, call: Call, batch: AsyncBatch, watch: Watch) -> None:
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
    """Send chunks until the batch has ended; chunks of a step go out together.

    Tokens may come that show nothing yet, such as those of a call of a tool: pings go by what was sent.
    """
    clock_s = asyncio.get_running_loop().time
    sent_s = clock_s()
    while True:
        if not chunks and clock_s() - sent_s >= ping_s:
            chunks = PING
        if chunks:
            await send({"type": "http.response.body", "body": chunks, "more_body": True})
            sent_s = clock_s()
        if batch.done and not batch.has_updates:
            return
        await watch.wait(lambda: batch.has_updates or batch.done, max(0.0, sent_s + ping_s - clock_s()))
        chunks = _chunks(batch, writer)


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

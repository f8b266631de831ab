"""Batches without an engine: events come from whichever batch has them, as they come."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from expertflow import AsyncBatch, Batch
from expertflow.ipc.messages import Submit, Timings
from expertflow.runtime.client.async_batch import stream_events as stream_async
from expertflow.runtime.client.batch import stream_events
from expertflow.runtime.client.request import BatchUpdates, ClientRequest
from expertflow.runtime.text.codec import TextCodec

SCRIPT = [(0, 5), (1, 6), (0, 7), (2, 8), (0, None), (1, 9), (1, None), (2, None)]
"""What arrives: a token of the only request of a batch, or its end."""
ENDS = [(batch, [] if token is None else [token], "length" if token is None else None) for batch, token in SCRIPT]


def make_requests() -> list[ClientRequest]:
    submit = Submit(request_id="a", prompt_ids=[1], max_new_tokens=9)
    return [ClientRequest(0, submit, BatchUpdates()) for _ in range(3)]


def arrive(request: ClientRequest, token: int | None) -> None:
    if token is not None:
        request.tokens.append(token)
        request.notify()
    else:
        request.finish_reason, request.timings = "length", Timings(queued_ns=0, first_token_ns=0, total_ns=0)
        request.notify()


def test_events_come_from_whichever_batch_has_them(tmp_path: Path) -> None:
    requests, script = make_requests(), iter(SCRIPT)

    def drive_until(reached: Callable[[], bool], timeout_s: float | None) -> None:
        while not reached():
            batch, token = next(script)
            arrive(requests[batch], token)

    codec = TextCodec(str(tmp_path))
    batches = [Batch([each], each.updates, codec, lambda cancelled: None, drive_until) for each in requests]
    events = [
        (batches.index(batch), event.token_ids, event.finish_reason)
        for batch, event in stream_events(batches, drive_until)
    ]
    assert events == ENDS


def test_a_reader_in_asyncio_is_woken_by_any_of_its_batches(tmp_path: Path) -> None:
    requests = make_requests()

    async def feed() -> None:
        for batch, token in SCRIPT:
            for _ in range(5):  # so that the reader has its turns
                await asyncio.sleep(0)
            arrive(requests[batch], token)

    async def main() -> list[tuple[int, list[int], str | None]]:
        codec = TextCodec(str(tmp_path))
        batches = [AsyncBatch([each], each.updates, codec, lambda cancelled: None, lambda: False) for each in requests]
        feeding = asyncio.create_task(feed())
        events = [
            (batches.index(batch), event.token_ids, event.finish_reason) async for batch, event in stream_async(batches)
        ]
        await feeding
        assert not any(each.updates.listeners for each in requests), "a listener was left behind"
        return events

    assert asyncio.run(asyncio.wait_for(main(), 10)) == ENDS

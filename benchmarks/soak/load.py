"""Many short requests, one window after the other, by the clients and over HTTP in turn."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any

from expertflow import AsyncClient, Client

from ..chaos.engine_process import EngineProcess
from ..serving.raw_client import post, read_stream

VOCABULARY = 2048
BODY_PROMPTS = 25
"""Prompts of a body over HTTP."""
PATIENCE_S = 600.0
Send = Callable[[list[list[int]]], list[float]]
"""Prompts -> the milliseconds of each request, or of each body."""


class Load:
    """Clients of one engine. Each window goes one way: the blocking client, the asyncio client, HTTP, streams."""

    def __init__(self, engine: EngineProcess, tokens: int, seed: int) -> None:
        self._engine, self._tokens = engine, tokens
        self._rng = random.Random(seed)
        self._client = Client(engine.address, answer_timeout_s=PATIENCE_S)
        self._loop = asyncio.new_event_loop()
        self._async_client = AsyncClient(engine.address, answer_timeout_s=PATIENCE_S)
        self._loop.run_until_complete(self._async_client.connect())
        self._ways: list[Send] = [self._send_blocking, self._send_async, self._send_bodies, self._send_streams]
        self._windows = 0

    def window(self, count: int) -> list[float]:
        """Send so many requests and wait for all; return milliseconds of each request or body."""
        prompts = [self._prompt() for _ in range(count)]
        way = self._ways[self._windows % len(self._ways)]
        self._windows += 1
        return way(prompts)

    def alone(self, count: int) -> list[float]:
        """Send so many requests, each when the last has ended; return milliseconds of each."""
        return [millisecond for _ in range(count) for millisecond in self._send_blocking([self._prompt()])]

    def close(self) -> None:
        """Disconnect."""
        self._client.close()
        self._loop.run_until_complete(self._async_client.close())
        self._loop.close()

    def _prompt(self) -> list[int]:
        return [self._rng.randrange(3, VOCABULARY) for _ in range(self._rng.randint(1, 8))]

    def _send_blocking(self, prompts: list[list[int]]) -> list[float]:
        done = self._client.generate(prompts, self._tokens, eos_ids=[], temperature=1.0, seed=1)
        return [_checked(len(each.token_ids), self._tokens, each.timings.total_ns / 1e6) for each in done]

    def _send_async(self, prompts: list[list[int]]) -> list[float]:
        sending = self._async_client.generate(prompts, self._tokens, eos_ids=[])
        done = self._loop.run_until_complete(sending)
        return [_checked(len(each.token_ids), self._tokens, each.timings.total_ns / 1e6) for each in done]

    def _send_bodies(self, prompts: list[list[int]]) -> list[float]:
        return self._loop.run_until_complete(_all_bodies(self._body, prompts))

    def _send_streams(self, prompts: list[list[int]]) -> list[float]:
        return self._loop.run_until_complete(_all_bodies(self._stream, prompts))

    async def _body(self, prompts: list[list[int]]) -> int:
        answer = await post(self._engine.port, "/v1/completions", self._content(prompts))
        return answer["usage"]["completion_tokens"]

    async def _stream(self, prompts: list[list[int]]) -> int:
        options = {"stream_options": {"include_usage": True}}
        stream = await read_stream(self._engine.port, "/v1/completions", self._content(prompts) | options)
        if not stream.done:
            raise RuntimeError(f"a stream broke off: {stream.error}")
        return sum(event.count(b'"finish_reason":"length"') for event in stream.events) * self._tokens

    def _content(self, prompts: list[list[int]]) -> dict[str, Any]:
        return {"model": "model", "prompt": prompts, "max_tokens": self._tokens, "temperature": 0, "ignore_eos": True}


async def _all_bodies(send: Callable[[list[list[int]]], Awaitable[int]], prompts: list[list[int]]) -> list[float]:
    """Send the prompts in bodies, all at once; return the milliseconds of each body."""
    parts = [prompts[first : first + BODY_PROMPTS] for first in range(0, len(prompts), BODY_PROMPTS)]
    return await asyncio.gather(*(_timed(send, part) for part in parts))


async def _timed(send: Callable[[list[list[int]]], Awaitable[int]], part: list[list[int]]) -> float:
    begun_s = time.perf_counter()
    tokens = await send(part)
    if not tokens or tokens % len(part):
        raise RuntimeError(f"{tokens} tokens came for {len(part)} prompts")
    return 1000 * (time.perf_counter() - begun_s)


def _checked(tokens: int, wanted: int, milliseconds: float) -> float:
    """Return the milliseconds. Raises RuntimeError for an output of another length."""
    if tokens != wanted:
        raise RuntimeError(f"an output of {tokens} tokens, not of {wanted}")
    return milliseconds

"""Draw the requests of a run: prompts of token ids, some of which begin alike, greedy and seeded."""

from __future__ import annotations

import random
from typing import Literal, NamedTuple

Way = Literal["client", "asyncio", "http", "stream"]
WAYS: tuple[Way, ...] = ("client", "asyncio", "http", "stream")
"""The blocking client, the asyncio client, one body over HTTP, a stream over HTTP."""

SHARED_TOKENS = 40
"""Tokens with which half of the prompts begin: more than a block of the prefix cache has."""


class PlannedRequest(NamedTuple):
    """A request; whichever way it goes, its output is the same."""

    number: int
    prompt_ids: list[int]
    max_new_tokens: int
    temperature: float
    seed: int
    honours_end: bool
    """True: the model's end-of-text id ends it."""


class Ended(NamedTuple):
    """What a sender got for a request."""

    number: int
    way: Way
    token_ids: list[int]
    """Output as its last message states it; empty after an error."""
    streamed_ids: list[int] | None
    """Output put together from the pieces as they came; None where there are no pieces."""
    text: str
    ends: int
    """Times that the end was told."""
    error: str = ""


def draw_requests(seed: int, count: int, vocabulary: int, longest: int) -> list[PlannedRequest]:
    """Return requests of 1 to 80 prompt tokens and up to `longest` new ones, the same for the same seed."""
    rng = random.Random(f"requests {seed}")
    shared = _draw_ids(rng, SHARED_TOKENS, vocabulary)
    return [_draw_request(rng, number, vocabulary, longest, shared) for number in range(count)]


def _draw_request(
    rng: random.Random, number: int, vocabulary: int, longest: int, shared: list[int]
) -> PlannedRequest:
    own = _draw_ids(rng, rng.randint(1, 40), vocabulary)
    return PlannedRequest(
        number=number,
        prompt_ids=shared + own if rng.random() < 0.5 else own,
        max_new_tokens=rng.randint(max(1, longest // 8), longest),
        temperature=rng.choice([0.0, 0.7, 1.0]),
        seed=rng.randrange(2**31),
        honours_end=rng.random() < 0.3,
    )


def _draw_ids(rng: random.Random, count: int, vocabulary: int) -> list[int]:
    return [rng.randrange(3, vocabulary) for _ in range(count)]


def draw_ways(rng: random.Random, requests: list[PlannedRequest]) -> dict[Way, list[PlannedRequest]]:
    """Return the requests in a new order, shared among all ways."""
    shuffled = rng.sample(requests, len(requests))
    return {way: shuffled[index :: len(WAYS)] for index, way in enumerate(WAYS)}

"""Load of a measurement: prompts through a client, with what engines counted meanwhile."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import msgspec
from expertflow.errors import ExpertFlowError
from expertflow.ipc.shared.rundir import living
from expertflow.ipc.transport.addresses import MONITOR
from expertflow.runtime.client.async_client import AsyncClient
from expertflow.runtime.client.completions import Completion
from expertflow.runtime.client.options import Request
from expertflow.runtime.client.watching import Watcher

from .prompts import KINDS, mixed

PUBLISHED_S = 1.5
"""Time after which engines have published what they counted: they do so once a second."""


class Counted(msgspec.Struct, frozen=True):
    """Counters of one engine."""

    hits: int
    misses: int
    loaded_bytes: int


class Measured(msgspec.Struct, kw_only=True):
    """Figures of one load."""

    seconds: float
    tokens: int
    hits: int
    misses: int
    loaded_bytes: int
    busiest: float
    """Experts used by the busiest engine ÷ the mean."""

    def row(self, name: str) -> dict[str, Any]:
        """Return a row for the table and the JSON."""
        return {
            "what": name,
            "tokens/s": round(self.tokens / self.seconds, 2),
            "found": round(self.hits / max(self.hits + self.misses, 1), 4),
            "kB/token": round(self.loaded_bytes / max(self.tokens, 1) / 1e3, 1),
            "busiest": round(self.busiest, 2),
            "seconds": round(self.seconds, 1),
        }


def engine_folders() -> list[str]:
    """Return the addresses of the engines in this process' run folder: a gateway has no socket for monitors."""
    return [str(path) for path in living() if (path / MONITOR).exists()]


def counters_of(engines: Sequence[str]) -> list[Counted]:
    """Return what engines have counted so far."""
    counted: list[Counted] = []
    for engine in engines:
        with Watcher(engine) as watcher:
            stages = watcher.snapshot().stages
        compute, loader = stages["compute"].counters, stages["loader"].counters
        counted.append(Counted(int(compute["hits"]), int(compute["misses"]), int(loader["bytes"])))
    return counted


def engine_sizes(engine: str) -> tuple[int, int, int]:
    """Return the slots of an engine that has run for a while, the bytes of an expert, and the experts of a layer."""
    with Watcher(engine) as watcher:
        heat = None
        while heat is None:
            time.sleep(1)  # stages report while somebody asks
            heat = next(iter(watcher.activity().values())).heat
        counters = watcher.snapshot().stages["loader"].counters
    slots = sum(place > 0 for place in heat.residence)
    return slots, round(counters["bytes"] / max(counters["loads"], 1)), heat.experts


def requests_of(count: int, tokens: int, first: int = 0, kinds: tuple[str, ...] = KINDS) -> list[Request]:
    """Return requests of mixed kinds, greedy and seeded ones in turn, from the prompt `first` on."""
    listed = mixed(count + first, kinds)[first:]
    return [
        Request(prompt=prompt, max_new_tokens=tokens, seed=number, temperature=0.8 * (number % 2), eos_ids=[])
        for number, (_, prompt) in enumerate(listed)
    ]


def measure_load(address: str, requests: list[Request], engines: Sequence[str]) -> Measured:
    """Run requests at once and return the figures."""
    before = counters_of(engines)
    seconds, done = asyncio.run(_timed(address, requests))
    time.sleep(PUBLISHED_S)
    pairs = list(zip(before, counters_of(engines), strict=True))
    used = [new.hits + new.misses - old.hits - old.misses for old, new in pairs]
    return Measured(
        seconds=seconds,
        tokens=sum(len(each.token_ids) for each in done),
        hits=sum(new.hits - old.hits for old, new in pairs),
        misses=sum(new.misses - old.misses for old, new in pairs),
        loaded_bytes=sum(new.loaded_bytes - old.loaded_bytes for old, new in pairs),
        busiest=max(used) * len(used) / max(sum(used), 1),
    )


async def _timed(address: str, requests: list[Request]) -> tuple[float, list[Completion]]:
    async with AsyncClient(address, connect_timeout_s=120) as client:
        begun_s = time.monotonic()
        done = await client.generate(requests)
        return time.monotonic() - begun_s, done


def record_routing(address: str, requests: list[Request]) -> list[Completion]:
    """Run requests and return them with their routing."""

    async def run() -> list[Completion]:
        async with AsyncClient(address, connect_timeout_s=120) as client:
            return await client.generate(requests, routed_experts=True)

    return asyncio.run(run())


def stream_all(address: str, requests: list[Request], at_once: int) -> list[tuple[list[int], float]]:
    """Run requests as streams, so many at once; return the ids of each as they came, and its longest gap in seconds.

    A stream that ends with an error has no ids.
    """

    async def run() -> list[tuple[list[int], float]]:
        room = asyncio.Semaphore(at_once)
        async with AsyncClient(address, connect_timeout_s=120) as client:
            return await asyncio.gather(*(_stream(client, request, room) for request in requests))

    return asyncio.run(run())


async def _stream(client: AsyncClient, request: Request, room: asyncio.Semaphore) -> tuple[list[int], float]:
    ids: list[int] = []
    last_s, worst_s = 0.0, 0.0
    async with room:
        try:
            async for event in await client.submit([request]):
                now_s = time.monotonic()
                worst_s = max(worst_s, now_s - last_s) if last_s else 0.0
                last_s = now_s
                ids += event.token_ids
                if event.error is not None:
                    return [], worst_s
        except ExpertFlowError:
            return [], worst_s
    return ids, worst_s

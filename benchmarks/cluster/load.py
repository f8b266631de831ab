"""Load of a measurement: prompts through a client, with what engines counted meanwhile."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import msgspec
from expertflow.runtime.client.async_client import AsyncClient
from expertflow.runtime.client.options import Request
from expertflow.runtime.client.watching import Watcher, living_engines

from .prompts import mixed


class Measured(msgspec.Struct, kw_only=True):
    """Figures of one load."""

    seconds: float
    tokens: int
    tokens_per_s: float
    hits: int
    misses: int
    loaded_bytes: int
    sent: list[int] = []
    """Requests of each replica."""

    @property
    def hit_rate(self) -> float:
        return self.hits / max(self.hits + self.misses, 1)

    @property
    def bytes_per_token(self) -> float:
        return self.loaded_bytes / max(self.tokens, 1)


def engine_counters() -> dict[str, tuple[int, int, int]]:
    """Return engine -> its hits, misses and loaded bytes so far, of all engines of this user."""
    counted = {}
    for path in living_engines():
        try:
            with Watcher(path) as watcher:
                stages = watcher.snapshot().stages
        except Exception:  # noqa: BLE001, S112 - a gateway's folder, or an engine that has just ended
            continue
        compute, loader = stages["compute"].counters, stages["loader"].counters
        counted[str(path)] = int(compute["hits"]), int(compute["misses"]), int(loader["bytes"])
    return counted


def engine_folders() -> list[str]:
    """Return the addresses of engines, without gateways."""
    return sorted(engine_counters())


def engine_sizes(folder: str) -> tuple[int, int, int]:
    """Return the slots of an engine that has run for a while, the bytes of an expert, and the experts of a layer."""
    with Watcher(folder) as watcher:
        heat = None
        while heat is None:
            time.sleep(1)  # stages report while somebody asks
            heat = next(iter(watcher.activity().values())).heat
        counters = watcher.snapshot().stages["loader"].counters
    slots = sum(place > 0 for place in heat.residence)
    return slots, round(counters["bytes"] / max(counters["loads"], 1)), heat.experts


def requests_of(count: int, tokens: int, first: int = 0, kinds: tuple[str, ...] | None = None) -> list[Request]:
    """Return requests of mixed kinds, greedy and seeded ones in turn."""
    listed = mixed(count + first, kinds) if kinds else mixed(count + first)
    return [
        Request(prompt=prompt, max_new_tokens=tokens, seed=number, temperature=0.8 * (number % 2), eos_ids=[])
        for number, (_, prompt) in enumerate(listed[first:])
    ]


async def run_load(address: str, requests: list[Request]) -> Measured:
    """Run requests at once and return the figures."""
    before = await asyncio.to_thread(engine_counters)
    async with AsyncClient(address, connect_timeout_s=120) as client:
        begun_s = time.monotonic()
        done = await client.generate(requests)
        seconds = time.monotonic() - begun_s
    await asyncio.sleep(1.5)  # counters are published every second
    after = await asyncio.to_thread(engine_counters)
    deltas = [
        tuple(new - old for new, old in zip(after[name], before.get(name, (0, 0, 0)), strict=True)) for name in after
    ]
    tokens = sum(len(completion.token_ids) for completion in done)
    hits, misses, loaded = (sum(delta[place] for delta in deltas) for place in range(3))
    return Measured(
        seconds=seconds, tokens=tokens, tokens_per_s=tokens / seconds, hits=hits, misses=misses, loaded_bytes=loaded
    )


def to_row(name: str, measured: Measured) -> dict[str, Any]:
    """Return a row for the table and the JSON."""
    return {
        "what": name,
        "tokens/s": round(measured.tokens_per_s, 1),
        "found": round(measured.hit_rate, 3),
        "kB/token": round(measured.bytes_per_token / 1e3, 1),
        "seconds": round(measured.seconds, 1),
    }

"""Several engines as one on a real Ray: python -m expertflow.benchmarks.cluster [--parts …] [--out FILE].

The nodes are processes of this machine. Engines have one thread each and an emulated link that binds, so that two
cores carry four engines; the figures say what routing and Ray do, not how fast a model is.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
from expertflow.runtime.client.async_client import AsyncClient
from expertflow.runtime.client.completions import Completion
from expertflow.runtime.client.options import Request
from expertflow.runtime.engine.process_memory import pss_bytes
from expertflow.workers.traces.trace import write_npz

from ..report import show_table
from .load import engine_folders, engine_sizes, requests_of, run_load, to_row
from .nodes import deploy, ray_nodes, ray_processes, replica_processes, running
from .simulated import trace_of

TOKENS = 24
PARTS = ("overhead", "scaling", "rules", "kills")


def main() -> None:
    """Measure the parts and write them."""
    options = _parse()
    engine: dict[str, Any] = {
        "expert_memory": options.memory, "tier": "host", "link": "dma", "link_rate": options.link,
        "compute_threads": 1, "dtype": "float32", "batch_size": 8, "hints": "off", "predictor": "none",
    }  # fmt: skip
    result: dict[str, Any] = {"engine": engine, "nodes": options.nodes, "load": os.getloadavg()}
    with ray_nodes(options.nodes):
        for count in [count for count in (1, 2, 4) if count <= options.nodes]:
            result[f"deployed_{count}_s"] = deploy(count, engine)
            _measure(options, count, result)
            if options.out:
                options.out.write_bytes(msgspec.json.format(msgspec.json.encode(result)) + b"\n")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=4, choices=(1, 2, 4))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--memory", default="4MB", help="expert memory of each engine")
    parser.add_argument("--link", default="40MB", help="rate of each engine's emulated link, a second")
    parser.add_argument("--requests", type=int, default=48, help="requests for each replica")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--streams", type=int, default=100, help="streams under kills")
    parser.add_argument("--kill-every", type=float, default=10.0, help="seconds from all running to the next kill")
    parser.add_argument("--out", type=Path, help="JSON; the routing of all requests goes beside it, for .simulated")
    return parser.parse_args()


def _measure(options: argparse.Namespace, count: int, result: dict[str, Any]) -> None:
    parts = options.parts
    if count == 1:
        result["requests"] = options.requests
        _record(options, result)
    if "overhead" in parts and count == 1:
        result["overhead"] = _overhead(options)
        result["memory"] = _memory()
    if "scaling" in parts:
        result.setdefault("scaling", []).append(_through_gateway(f"{count} replicas", "experts", count, options, 0))
        show_table("scaling", result["scaling"], left=1)
    if "rules" in parts and count == options.nodes > 1:
        result["rules"] = [
            _through_gateway(f"{rule}, round {number + 1}", rule, count, options, number + 1)
            for number in range(options.rounds) for rule in ("experts", "two-choices", "round-robin")
        ]  # fmt: skip
        show_table("rules", result["rules"], left=1)
    if "kills" in parts and count == options.nodes > 1:
        result["kills"] = _kills(options, count)
        show_table("kills", [result["kills"]], left=0)


@contextmanager
def gateway(rule: str) -> Iterator[str]:
    """Yield the address of a gateway with this rule to the replicas that run; Ray was joined before."""
    from expertflow.runtime.cluster.hosts.joining import GatewayThread
    from expertflow.runtime.cluster.hosts.settings import ClusterSettings

    thread = GatewayThread(msgspec.convert({"model": "", "routing": rule}, ClusterSettings))
    try:
        yield thread.start().address
    finally:
        thread.stop()


def _through_gateway(name: str, rule: str, count: int, options: argparse.Namespace, first: int) -> dict[str, Any]:
    requests = requests_of(options.requests * count, TOKENS, first=first)
    with gateway(rule) as address:
        return to_row(name, asyncio.run(run_load(address, requests)))


def _overhead(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure the same engine directly and through a gateway over Ray, in turn; the first round warms up."""
    (engine,) = engine_folders()
    rows = []
    requests = requests_of(options.requests, TOKENS)
    for number in range(options.rounds + 1):
        for name, way in (("direct", None), ("gateway over Ray", "round-robin")):
            with _address(engine, way) as address:
                row = to_row(f"{name}, round {number}", asyncio.run(run_load(address, requests)))
            rows += [row] if number else []
    show_table("overhead at one replica", rows, left=1)
    return rows


@contextmanager
def _address(engine: str, rule: str | None) -> Iterator[str]:
    if rule is None:
        yield engine
    else:
        with gateway(rule) as address:
            yield address


def _record(options: argparse.Namespace, result: dict[str, Any]) -> None:
    """Run all requests of the measurement once, and write their routing for the simulation; it warms up, too."""
    (engine,) = engine_folders()
    requests = requests_of(options.requests * options.nodes, TOKENS)
    done = asyncio.run(_routed(engine, requests))
    result["slots"], result["expert_bytes"], experts = engine_sizes(engine)
    if options.out:
        write_npz(trace_of(done, experts), options.out.with_suffix(".npz"))


async def _routed(address: str, requests: list[Request]) -> list[Completion]:
    async with AsyncClient(address) as client:
        return await client.generate(requests, routed_experts=True)


def _memory() -> dict[str, float]:
    """Return MB (PSS) of Ray's processes by kind; those of replicas include their supervisor, not the stages."""
    memory = {kind: sum(map(pss_bytes, pids)) / 1e6 for kind, pids in sorted(ray_processes().items())}
    show_table("memory of Ray", [{"what": kind, "MB": round(size, 1)} for kind, size in memory.items()], left=1)
    return {kind: round(size, 1) for kind, size in memory.items()}


def _kills(options: argparse.Namespace, count: int) -> dict[str, Any]:
    """Run streams undisturbed, then with a replica killed again and again; compare every token."""
    requests = requests_of(options.streams, TOKENS)
    with gateway("experts") as address:
        calm = asyncio.run(_streams(address, requests, lambda: None))
        killer = _Killer(count, options.kill_every)
        wild = asyncio.run(_streams(address, requests, killer.look))
    same = [mine == other for (mine, _), (other, _) in zip(wild, calm, strict=True)]
    return {
        "streams": len(requests),
        "kills": killer.kills,
        "lost": sum(len(ids) == 0 for ids, _ in wild),
        "different": same.count(False),
        "worst gap s": round(max(gap for _, gap in wild), 1),
        "undisturbed s": round(max(gap for _, gap in calm), 1),
    }


class _Killer:
    """Kills the oldest replica some seconds after all run."""

    def __init__(self, count: int, every_s: float) -> None:
        self.kills = 0
        self._count, self._every_s = count, every_s
        self._since_s: float | None = None

    def look(self) -> None:
        """Kill if it is time; called about once a second."""
        if running() < self._count:
            self._since_s = None
            return
        self._since_s = self._since_s or time.monotonic()
        if time.monotonic() - self._since_s >= self._every_s:
            os.kill(replica_processes()[0], signal.SIGKILL)
            self.kills, self._since_s = self.kills + 1, None


async def _streams(address: str, requests: list[Any], look: Callable[[], None]) -> list[tuple[list[int], float]]:
    """Return the ids of each stream, as they came, and its longest gap between two events in seconds."""
    async with AsyncClient(address, connect_timeout_s=120) as client:
        looking = asyncio.create_task(_look_again(look))
        try:
            got = [await task for task in [asyncio.create_task(_stream(client, request)) for request in requests]]
        finally:
            looking.cancel()
    return got


async def _look_again(look: Callable[[], None]) -> None:
    while True:
        await asyncio.to_thread(look)
        await asyncio.sleep(1)


async def _stream(client: AsyncClient, request: Any) -> tuple[list[int], float]:
    ids: list[int] = []
    last_s, worst_s = 0.0, 0.0
    async for event in await client.submit([request]):
        now_s = time.monotonic()
        worst_s = max(worst_s, now_s - last_s) if last_s else 0.0
        last_s = now_s
        ids += event.token_ids
        if event.error is not None:
            raise event.error
    return ids, worst_s


if __name__ == "__main__":
    main()

"""Many streams at once on one engine: none may be lost, and the server may not grow with them.

python -m expertflow.benchmarks.serving streams --streams 1000 --tokens 32

Streams that are not whole when the time is up count as lost.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from typing import Any

from expertflow.ipc.shared.open_files import allow_open_files
from expertflow.runtime.engine.process_memory import pss_bytes

from ..report import show_table
from .budget import Budget
from .common import add_model_options, config_of
from .raw_client import Stream, read_stream
from .served import Served, served

MINUTES = 6.0
PATH = "/v1/completions"
SAMPLE_S = 0.2
OTHER_FILES = 200
"""Open files that are no connection."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this measurement."""
    add_model_options(parser, default="built-in")
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--tokens", type=int, default=32, help="tokens of each")
    parser.add_argument("--batch", type=int, default=64, help="rows of the engine")


def run(arguments: argparse.Namespace, budget: Budget) -> dict[str, Any]:
    """Measure, show and return what became of the streams."""
    allow_open_files(arguments.streams + OTHER_FILES)
    with served(config_of(arguments, batch_size=arguments.batch)) as engine:
        row = asyncio.run(_measure(engine, arguments.streams, arguments.tokens, budget))
    show_table("open streams", [row], left=0)
    return row


async def _measure(engine: Served, count: int, tokens: int, budget: Budget) -> dict[str, Any]:
    """Return what became of `count` streams opened at once, and the server's memory before and at most."""
    before = pss_bytes(engine.front.pid or 0)
    watch = MemoryWatch(engine.front.pid or 0)
    watching = asyncio.create_task(watch.run())
    body = {"max_tokens": tokens, "ignore_eos": True, "temperature": 0}
    begun = time.perf_counter()
    opened = [
        asyncio.create_task(read_stream(engine.port, PATH, body | {"prompt": [1 + place % 100, 5, 6]}))
        for place in range(count)
    ]
    ended, late = await asyncio.wait(opened, timeout=budget.left_s)
    taken = time.perf_counter() - begun
    for task in (watching, *late):
        task.cancel()
    results = await asyncio.gather(*ended, return_exceptions=True)
    whole = [stream for stream in results if isinstance(stream, Stream) and stream.done and not stream.error]
    return {
        "streams": count,
        "whole": len(whole),
        "seconds": round(taken, 1),
        "tokens_a_s": round(len(whole) * tokens / taken, 1),
        "server_mb_before": round(before / 1e6, 1),
        "server_mb_at_most": round(watch.peak_bytes / 1e6, 1),
    }


class MemoryWatch:
    """The largest memory of a process, sampled."""

    def __init__(self, pid: int) -> None:
        self.peak_bytes = 0
        self._pid = pid

    async def run(self) -> None:
        while True:
            self.peak_bytes = max(self.peak_bytes, pss_bytes(self._pid))
            await asyncio.sleep(SAMPLE_S)

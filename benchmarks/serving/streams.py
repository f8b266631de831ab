"""Open many streams at once on one engine: none may be lost, and the server may not grow with them.

python -m expertflow.benchmarks.serving.streams --out docs/results/streams.json
"""

from __future__ import annotations

import argparse
import asyncio
import time
from pathlib import Path
from typing import Any

from expertflow import Config
from expertflow.ipc.shared.open_files import allow_open_files
from expertflow.runtime.engine.status_board import pss_bytes

from ..models import EXAMPLES
from ..report import show_table, write_json
from .raw_client import Stream, read_stream
from .served import Served, served

PATH = "/v1/completions"
SAMPLE_S = 0.2


async def measure(engine: Served, count: int, tokens: int) -> dict[str, Any]:
    """Return what became of `count` streams opened at once, and the server's memory before and at most."""
    before = pss_bytes(engine.front.pid or 0)
    watch = MemoryWatch(engine.front.pid or 0)
    watching = asyncio.create_task(watch.run())
    body = {"max_tokens": tokens, "ignore_eos": True, "temperature": 0}
    begun = time.perf_counter()
    streams = await asyncio.gather(
        *(read_stream(engine.port, PATH, body | {"prompt": [1 + place % 100, 5, 6]}) for place in range(count)),
        return_exceptions=True,
    )
    taken = time.perf_counter() - begun
    watching.cancel()
    whole = [stream for stream in streams if isinstance(stream, Stream) and stream.done and not stream.error]
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    allow_open_files(arguments.streams + 200)
    config = Config.load("cpu-host", model=str(EXAMPLES / "model"), batch_size=64, kv_memory="512MiB")
    with served(config) as engine:
        row = asyncio.run(measure(engine, arguments.streams, arguments.tokens))
    show_table("Open streams", [row], left=0)
    write_json(arguments.out, row)


if __name__ == "__main__":
    main()

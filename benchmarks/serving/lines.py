"""Does a batch file of 10,000 lines need more memory than one of 1,000? PSS of `expertflow batch` over time.

The command runs as a process of its own against an engine with the built-in model. Its memory is read every second:
proportional set size and resident set size, from the first result to the last.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
from expertflow import Config, Supervisor

from ..models import EXAMPLES
from ..report import show_table
from .budget import Budget

MINUTES = 20.0
MIB = 1 << 20
SAMPLE_S = 1.0


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--lines", type=int, default=10_000)
    parser.add_argument("--tokens", type=int, default=2, help="new tokens of a line")
    parser.add_argument("--batch", type=int, default=64, help="rows of the engine")


def run(arguments: argparse.Namespace, budget: Budget) -> dict[str, object]:
    config = Config.load(model=EXAMPLES / "model", batch_size=arguments.batch, expert_memory="100%")
    with tempfile.TemporaryDirectory() as folder, Supervisor(config) as engine:
        file = Path(folder, "in.jsonl")
        write_requests(file, arguments.lines, arguments.tokens)
        started_s = time.monotonic()
        samples = list(_watched(file, Path(folder, "out.jsonl"), engine.address, budget))
        seconds = time.monotonic() - started_s
    if not samples:
        raise SystemExit("the command ended before its memory was read: give more lines or minutes")
    rows = [_at(samples, share, arguments.lines) for share in (0.1, 0.25, 0.5, 0.75, 1.0)]
    show_table(f"{arguments.lines:,} lines of {arguments.tokens} tokens in {seconds:.0f} s", rows)
    return {"lines": arguments.lines, "seconds": round(seconds, 1), "rows": rows, "grown MiB": _grown(samples)}


def write_requests(file: Path, lines: int, tokens: int) -> None:
    """Write requests with prompts of 100 to 300 characters of the held-out text."""
    text, rng = (EXAMPLES / "held_out.txt").read_text(), np.random.default_rng(0)
    with file.open("w") as opened:
        for number in range(lines):
            start, length = int(rng.integers(len(text) - 300)), int(rng.integers(100, 300))
            body = {"prompt": text[start : start + length], "max_tokens": tokens, "temperature": 1.0}
            line = {"custom_id": f"line-{number}", "method": "POST", "url": "/v1/completions", "body": body}
            opened.write(json.dumps(line) + "\n")


def _watched(file: Path, results: Path, address: str, budget: Budget) -> Iterator[tuple[int, float, float]]:
    """Run the command; yield ended lines, PSS and RSS in MiB about each second. Raises CalledProcessError.

    When the time is up, the command is interrupted, which it survives with what it has.
    """
    words = [sys.executable, "-P", "-m", "expertflow", "batch", str(file), str(results), "--address", address]
    stopped = False
    with subprocess.Popen(words) as process:
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            if results.exists():
                memory = watched.memory_full_info()
                yield _count_lines(results), memory.pss / MIB, memory.rss / MIB
            time.sleep(SAMPLE_S)
            if not (stopped or budget.left_s):
                process.send_signal(signal.SIGINT)
                stopped = True
    if process.returncode and not stopped:
        raise subprocess.CalledProcessError(process.returncode, words)


def _count_lines(file: Path) -> int:
    with file.open("rb") as opened:
        return sum(chunk.count(b"\n") for chunk in iter(lambda: opened.read(MIB), b""))


def _at(samples: list[tuple[int, float, float]], share: float, lines: int) -> dict[str, object]:
    """Return the memory when this share of the lines had ended."""
    ended, pss, rss = min(samples, key=lambda sample: abs(sample[0] - share * lines))
    return {"ended lines": ended, "PSS MiB": round(pss, 1), "RSS MiB": round(rss, 1)}


def _grown(samples: list[tuple[int, float, float]]) -> float:
    """Return by how many MiB the median PSS of the last fifth of the samples exceeds that of the second fifth."""
    fifth = max(len(samples) // 5, 1)
    first, last = (np.median([sample[1] for sample in part]) for part in (samples[fifth : 2 * fifth], samples[-fifth:]))
    return round(float(last - first), 2)

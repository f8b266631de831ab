"""Longest gap between tokens of running rows while a long prompt comes in, with chunked prefill and without.

python -m expertflow.benchmarks.serving chunked --model r --prompt 4000 --rows 4 --chunk 512

Rows of short prompts decode. Then a prompt of random ids comes in, and the gaps between their tokens are taken until
its first token is there. A chunk's step is the time of such a prompt alone, divided by its chunks.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

from expertflow import Client, Supervisor

from ..report import show_table
from .budget import Budget
from .common import add_model_options, config_of, random_ids

MINUTES = 10.0
SHORT = 8
"""Tokens of the prompts of the running rows."""
USUAL = 6
"""Tokens of each row before the long prompt comes."""
ENOUGH = 400
"""Tokens that the running rows may make: more than fit between the chunks."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this measurement."""
    add_model_options(parser)
    parser.add_argument("--prompt", type=int, default=4000, help="tokens of the long prompt")
    parser.add_argument("--rows", type=int, default=4, help="rows that run when it comes")
    parser.add_argument("--chunk", type=int, default=512, help="prefill_chunk")
    parser.add_argument("--rounds", type=int, default=3, help="long prompts")


def run(arguments: argparse.Namespace, budget: Budget) -> dict[str, Any]:
    """Measure, show and return the gaps of both engines; the second one prefills in one step."""
    sizes = {f"chunks of {arguments.chunk}": arguments.chunk, "one step": 0}
    budgets = (budget.part(2), budget)
    figures = {
        name: _measure(arguments, chunk, each) for (name, chunk), each in zip(sizes.items(), budgets, strict=True)
    }
    title = f"{arguments.rows} rows, a prompt of {arguments.prompt} tokens, {arguments.expert_memory} of experts"
    show_table(title, [_row(prefill, each) for prefill, each in figures.items()])
    return {"prompt": arguments.prompt, "rows": arguments.rows, "model": arguments.model, **figures}


def _row(prefill: str, figures: dict[str, Any]) -> dict[str, str]:
    return {
        "prefill in": prefill,
        "a chunk's step": f"{figures['chunk_s']:.2f} s",
        "gap before": f"{figures['gap_before_s']:.2f} s",
        "longest gap": f"{max(figures['longest_gaps_s']):.2f} s",
        "gap / chunk": f"{max(figures['longest_gaps_s']) / figures['chunk_s']:.2f}",
        "first token": f"{max(figures['first_token_s']):.2f} s",
        "alone": f"{figures['alone_s']:.2f} s",
    }


def _measure(arguments: argparse.Namespace, chunk: int, budget: Budget) -> dict[str, Any]:
    """Return the times with one chunk size, in seconds; each round has a prompt of its own."""
    config = config_of(arguments, prefill_chunk=chunk, batch_size=arguments.rows + 1, units="one")
    with Supervisor(config) as engine, Client(engine.address) as client:
        prompts = [
            random_ids(client.model.vocabulary, arguments.prompt, f"long {number}")
            for number in range(arguments.rounds + 2)
        ]
        client.generate(prompts[:1], max_new_tokens=1, eos_ids=[])  # warms up
        alone_s = _timed(lambda: client.generate(prompts[1:2], max_new_tokens=1, eos_ids=[]))
        rounds = [_round(client, prompts[2 + number], arguments.rows) for number in budget.rounds(arguments.rounds)]
    chunks = -(-arguments.prompt // chunk) if chunk else 1
    return {
        "alone_s": alone_s,
        "chunk_s": alone_s / chunks,
        "gap_before_s": max(before for before, _, _ in rounds),
        "longest_gaps_s": [longest for _, longest, _ in rounds],
        "first_token_s": [first for _, _, first in rounds],
    }


def _round(client: Client, prompt: list[int], rows: int) -> tuple[float, float, float]:
    """Return a usual gap, the longest gap while the prompt came in, and the seconds to its first token."""
    running = client.submit(_short_prompts(client, rows), max_new_tokens=ENOUGH, eos_ids=[])
    gaps = Gaps()
    while gaps.count < USUAL * rows:
        gaps.add(next(iter(running)).index)
    usual, gaps.longest = gaps.longest, 0.0
    started = time.monotonic()
    long = client.submit([prompt], max_new_tokens=1, eos_ids=[])
    for batch, event in client.events(running, long):
        if batch is long:
            break
        gaps.add(event.index)
    gaps.end()
    first_s = time.monotonic() - started
    running.cancel()
    running.results()
    return usual, gaps.longest, first_s


class Gaps:
    """Times between the tokens of rows; the first of a row has none."""

    def __init__(self) -> None:
        self._last: dict[int, float] = {}
        self.count, self.longest = 0, 0.0

    def add(self, row: int) -> None:
        """Note that a token of this row came now."""
        now = time.monotonic()
        if row in self._last:
            self.longest = max(self.longest, now - self._last[row])
        self._last[row] = now
        self.count += 1

    def end(self) -> None:
        """Count the gap that each row is in now: it lasts at least until here."""
        now = time.monotonic()
        self.longest = max([self.longest, *(now - last for last in self._last.values())])


def _short_prompts(client: Client, rows: int) -> list[list[int]]:
    return [random_ids(client.model.vocabulary, SHORT, f"short {number}") for number in range(rows)]


def _timed(work: Any) -> float:
    started = time.monotonic()
    work()
    return time.monotonic() - started

"""Time to the first token of prompts that share a prefix, with prefix reuse and without.

python -m expertflow.benchmarks.serving prefix --model r --prefix 1000 --own 16 --prompts 5

Prompts of random ids come one after the other; each begins with the same ids. The first one, which computes the prefix,
is not counted. Both engines get the same prompts, one engine after the other.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

from expertflow import Client, Supervisor

from ..report import show_table
from .budget import Budget
from .common import add_model_options, config_of, random_ids

MINUTES = 5.0


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this measurement."""
    add_model_options(parser)
    parser.add_argument("--prefix", type=int, default=1000, help="tokens that all prompts begin with")
    parser.add_argument("--own", type=int, default=16, help="tokens of each prompt alone")
    parser.add_argument("--prompts", type=int, default=5, help="prompts after the first")


def run(arguments: argparse.Namespace, budget: Budget) -> dict[str, Any]:
    """Measure, show and return the seconds of both engines, and their ratio prompt by prompt."""
    budgets = {"off": budget.part(2), "on": budget}
    figures = {reuse: _measure_engine(arguments, reuse, each) for reuse, each in budgets.items()}
    title = f"{arguments.prefix} shared tokens and {arguments.own} of each prompt, {arguments.expert_memory} of experts"
    show_table(title, [_row(reuse, each) for reuse, each in figures.items()])
    pairs = zip(figures["off"]["seconds"], figures["on"]["seconds"], strict=False)  # as many as both had time for
    ratios = [off / on for off, on in pairs]
    ratio = {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}
    show_table("times as fast with reuse, prompt by prompt", [{name: f"{each:.1f}" for name, each in ratio.items()}])
    return {"prefix": arguments.prefix, "own": arguments.own, "model": arguments.model, **figures, "ratio": ratio}


def _row(reuse: str, figures: dict[str, Any]) -> dict[str, str]:
    return {
        "prefix reuse": reuse,
        "first token, median": f"{statistics.median(figures['seconds']):.3f} s",
        "cached tokens": str(figures["cached_tokens"]),
    }


def _measure_engine(arguments: argparse.Namespace, reuse: str, budget: Budget) -> dict[str, Any]:
    """Return the seconds to the first token of each prompt but the first, and how many tokens were not computed."""
    seconds, cached = [], []
    with Supervisor(config_of(arguments, prefix_cache=reuse)) as engine, Client(engine.address) as client:
        shared = random_ids(client.model.vocabulary, arguments.prefix, "shared")
        for number in budget.rounds(arguments.prompts + 1, least=2):
            prompt = shared + random_ids(client.model.vocabulary, arguments.own, f"own {number}")
            started = time.monotonic()
            (done,) = client.generate([prompt], max_new_tokens=1, eos_ids=[])
            seconds.append(time.monotonic() - started)
            cached.append(done.cached_tokens)
    return {"seconds": seconds[1:], "cached_tokens": cached[1:], "first_prompt_s": seconds[0]}

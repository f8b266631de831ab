"""What watching costs: tokens a second with /metrics scraped each second, the page open and `top`, against none of it.

python -m expertflow.benchmarks.serving watching --model widened --expert-memory 60% --minutes 20

Blocks with watchers and without take turns on one engine behind its HTTP server, in pairs of which either is first in
every other round. Watchers are processes on the same machine: what they take themselves is charged, too. Experts come
from host memory, because a disk's rate changes by more than what is measured. I7 asks for a ratio of 0.99 or more.
"""

from __future__ import annotations

import argparse
import time
from typing import Any, NamedTuple

import psutil
from expertflow import Client

from ..intervals import median_interval
from ..models import held_out_prompts
from ..report import show_table
from .budget import Budget
from .common import add_model_options, config_of
from .quartiles import quartiles
from .served import Served, served
from .watchers import NAMES, Watchers

MINUTES = 20.0
TARGET = 0.99


class Rate(NamedTuple):
    """Speed of a block, and what the whole machine spent on it."""

    tokens_per_s: float
    busy_ms_per_token: float
    """Time of all cores that were not idle."""


class Pair(NamedTuple):
    """Rates of two blocks of the same prompts."""

    watched: Rate
    alone: Rate


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this measurement."""
    add_model_options(parser, default="widened")
    parser.set_defaults(expert_memory="60%")
    parser.add_argument("--tier", choices=("host", "disk"), default="host", help="where experts come from")
    parser.add_argument("--rows", type=int, default=8, help="sequences of a block")
    parser.add_argument("--tokens", type=int, default=96, help="new tokens of each")
    parser.add_argument("--rounds", type=int, default=40, help="pairs of blocks")
    parser.add_argument("--settle", type=float, default=6.0, help="seconds between watchers' start or end and a block")
    parser.add_argument("--watchers", nargs="+", choices=NAMES, default=list(NAMES), help="who watches")


def run(arguments: argparse.Namespace, budget: Budget) -> dict[str, Any]:
    """Measure, show and return the pairs and their ratio. Raises RuntimeError for a watcher that saw nothing."""
    config = config_of(arguments, batch_size=arguments.rows, tier=arguments.tier, units="one", prediction="on")
    seen: dict[str, int] = dict.fromkeys(arguments.watchers, 0)
    with served(config) as engine, Client(engine.address) as client:
        bench = _Bench(engine, client, arguments, seen)
        bench.block(watched=False)  # warms up
        pairs = [bench.pair(watched_first=number % 2 == 0) for number in budget.rounds(arguments.rounds, least=2)]
    if blind := [name for name, count in seen.items() if not count]:
        raise RuntimeError(f"these watched nothing: {', '.join(blind)}")
    title = f"{arguments.rows} rows of {arguments.tokens} tokens, model {arguments.model}, {arguments.expert_memory}"
    show_table(title, [row := _row(arguments.watchers, pairs)])
    return {"rows": [row], "pairs": pairs, "seen": seen}


def _row(watchers: list[str], pairs: list[Pair]) -> dict[str, Any]:
    ratio = median_interval([pair.watched.tokens_per_s / pair.alone.tokens_per_s for pair in pairs])
    busy = median_interval([pair.watched.busy_ms_per_token / pair.alone.busy_ms_per_token for pair in pairs])
    return {
        "watched by": ", ".join(watchers),
        "tokens/s watched": f"{quartiles([pair.watched.tokens_per_s for pair in pairs]).median:.2f}",
        "tokens/s alone": f"{quartiles([pair.alone.tokens_per_s for pair in pairs]).median:.2f}",
        "ratio (95 %)": f"{ratio.estimate:.4f} ({ratio.low:.4f} to {ratio.high:.4f})",
        "processor time a token, ratio (95 %)": f"{busy.estimate:.4f} ({busy.low:.4f} to {busy.high:.4f})",
        "pairs": len(pairs),
        f"at least {TARGET}": "yes" if ratio.estimate >= TARGET else "no",
    }


class _Bench:
    """Blocks on one engine."""

    def __init__(self, engine: Served, client: Client, arguments: argparse.Namespace, seen: dict[str, int]) -> None:
        self._engine, self._client, self._arguments, self._seen = engine, client, arguments, seen
        self._prompts = held_out_prompts(arguments.rows)

    def pair(self, watched_first: bool) -> Pair:
        """Return the rates of a block with watchers and of one without."""
        rates = {watched: self.block(watched) for watched in (watched_first, not watched_first)}
        return Pair(rates[True], rates[False])

    def block(self, watched: bool) -> Rate:
        """Return the rate of a block; stages report to watchers for some seconds after these have gone."""
        with Watchers(self._arguments.watchers if watched else [], self._engine.port, self._engine.address) as watchers:
            time.sleep(self._arguments.settle)
            rate = self._decode()
        for name, count in watchers.seen.items():
            self._seen[name] += count
        return rate

    def _decode(self) -> Rate:
        """Return the rate from when every sequence has its first token."""
        batch = self._client.submit(self._prompts, max_new_tokens=self._arguments.tokens, eos_ids=[])
        started_s, busy_s, silent, counted = 0.0, 0.0, set(range(len(self._prompts))), 0
        for event in batch:
            if silent:
                silent.discard(event.index)
                started_s, busy_s = time.perf_counter(), _busy_s()
            else:
                counted += len(event.token_ids)
        return Rate(counted / (time.perf_counter() - started_s), 1000 * (_busy_s() - busy_s) / counted)


def _busy_s() -> float:
    """Return the seconds in which cores of this machine worked, all together."""
    times = psutil.cpu_times()
    return sum(times) - times.idle - times.iowait - times.guest - times.guest_nice

"""Measure what the order of a batch file's lines gains over that of arrival: two domains, a quarter of the experts.

The widened built-in model runs the same requests in the order of the file and in the order that `expertflow batch`
chooses by a trained predictor's forecast; with --all-orders also in the order by words alone, and with the domains
apart: what no forecast can exceed. Runs take turns on one engine, each order first in every other round. The gain is
the ratio of tokens a second of the runs of a round; loads say why. A first run of a few lines tells how many lines fit
into the time, so that there are rounds enough.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from expertflow import Client, Config, Supervisor
from expertflow.runtime.batch_files.checking import served_model
from expertflow.runtime.batch_files.job import JobFiles, JobModel, open_input, open_job
from expertflow.runtime.batch_files.progress import BatchProgress
from expertflow.runtime.batch_files.runner import BatchRun, lines_under_way
from expertflow.runtime.batch_files.store import IndexedInput
from expertflow.runtime.batch_files.work_order import find_forecast, input_order, shared_order
from expertflow.runtime.client.async_client import AsyncClient
from expertflow.runtime.text.codec import TextCodec

from ..counters import read_counters, subtract_counters
from ..models import EXAMPLES, widened
from ..report import show_table
from .budget import Budget
from .quartiles import quartiles

MINUTES = 7.0
ARRIVAL, FORECAST, WORDS, APART = "as they arrive", "by forecast experts", "by words", "domains apart"
ORDERS = (ARRIVAL, FORECAST, WORDS, APART)
PROMPT_CHARACTERS = 160
MAX_ROUNDS = 12
WARM_UP_BATCHES = 2
"""Batches of lines in the run that warms up."""
MIN_BATCHES = 4
"""Batches of lines of a run: in fewer, most rows have neighbours of the other domain in any order."""
FIRST_VERSE = "\n1 "
"""Begin of the first line of a chapter in verses; the other works have none."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this measurement."""
    parser.add_argument("--lines", type=int, default=96, help="at most")
    parser.add_argument("--tokens", type=int, default=32, help="new tokens of a line")
    parser.add_argument("--batches", type=int, nargs="+", default=[8], help="rows of the engine")
    parser.add_argument("--tier", choices=("disk", "host"), default="disk")
    parser.add_argument("--link-rate", default="", help="host tier: emulate a link of so many bytes a second")
    parser.add_argument("--share", default="25%", help="expert memory")
    parser.add_argument("--rounds", type=int, default=3, help="at least; more while there is time")
    parser.add_argument("--all-orders", action="store_true", help="by words and with the domains apart, too")


def run(arguments: argparse.Namespace, budget: Budget) -> dict[str, object]:
    """Measure, show and return a row for each order and batch size."""
    rows: list[dict[str, object]] = []
    for place, batch in enumerate(arguments.batches):
        rows += _measure(batch, arguments, budget.part(len(arguments.batches) - place))
    what = f"two domains, {arguments.tokens} tokens a line, {arguments.share} of the experts"
    show_table(f"widened model, {what}, {arguments.tier} {arguments.link_rate}", rows, left=2)
    options = {name: value for name, value in vars(arguments).items() if name not in ("run", "out", "measurement")}
    return {"options": options, "rows": rows}


def write_requests(file: Path, lines: int, tokens: int) -> None:
    """Write requests of two domains in random order, by turns with a known kind: `verse` or `term` in the custom_id."""
    kinds = {"verse": _texts(verses=True), "term": _texts(verses=False)}
    rng = random.Random(1)
    numbered = [(f"{kind}-{i}", rng.choice(texts)) for i in range(lines // 2) for kind, texts in kinds.items()]
    rng.shuffle(numbered)
    with file.open("w") as opened:
        for custom_id, text in numbered:
            start = rng.randrange(max(len(text) - PROMPT_CHARACTERS, 1))
            prompt = text[start : start + PROMPT_CHARACTERS]
            body = {"prompt": prompt, "max_tokens": tokens, "temperature": 1.0, "ignore_eos": True}
            line = {"custom_id": custom_id, "method": "POST", "url": "/v1/completions", "body": body}
            opened.write(json.dumps(line) + "\n")


def _texts(verses: bool) -> list[str]:
    documents = (EXAMPLES / "held_out.txt").read_text().split("<|endoftext|>\n")
    return [text for text in documents if (FIRST_VERSE in text[:80]) == verses and len(text) > PROMPT_CHARACTERS]


def _measure(batch: int, arguments: argparse.Namespace, budget: Budget) -> list[dict[str, object]]:
    """Return a row for each order on one engine."""
    config = Config.load(
        "cpu-disk",
        model=widened(),
        expert_memory=arguments.share,
        batch_size=batch,
        tier=arguments.tier,
        link_rate=arguments.link_rate if arguments.tier == "host" else "",
    )
    with tempfile.TemporaryDirectory() as folder, Supervisor(config) as engine, Client(engine.address) as client:
        runs = _Runs(Path(folder, "in.jsonl"), engine.address, client, ORDERS if arguments.all_orders else ORDERS[:2])
        lines = runs.lines_that_fit(batch, arguments, budget)
        write_requests(runs.file, lines, arguments.tokens)
        for number in budget.rounds(MAX_ROUNDS, least=arguments.rounds):
            runs.run_round(number)
    return [_row(batch, lines, order, runs.rates, runs.grown[order]) for order in runs.rates]


class _Runs:
    """Runs of the same requests on one engine: tokens a second, and by how much counters grew, by order."""

    def __init__(self, file: Path, address: str, client: Client, orders: Sequence[str]) -> None:
        self.file = file
        self.rates: dict[str, list[float]] = {order: [] for order in orders}
        self.grown: dict[str, dict[str, float]] = {}
        self._address, self._client = address, client

    def lines_that_fit(self, batch: int, arguments: argparse.Namespace, budget: Budget) -> int:
        """Run a few lines, which warms up, and return of how many lines the least rounds fit into the time."""
        few = WARM_UP_BATCHES * batch
        write_requests(self.file, few, arguments.tokens)
        begun_s = time.monotonic()
        run_in_order(self.file, self._address, ARRIVAL)
        line_s = (time.monotonic() - begun_s) / few
        fitting = int(budget.left_s / (arguments.rounds * len(self.rates)) / line_s)
        return max(MIN_BATCHES * batch, min(arguments.lines, fitting) // batch * batch)

    def run_round(self, number: int) -> None:
        """Run every order once, another one first in each round."""
        orders, by = list(self.rates), number % len(self.rates)
        for order in orders[by:] + orders[:by]:
            before = read_counters(self._client)
            self.rates[order].append(run_in_order(self.file, self._address, order))
            grown = subtract_counters(read_counters(self._client), before)
            self.grown[order] = _sum(self.grown.get(order, {}), grown)


def run_in_order(file: Path, address: str, order: str) -> float:
    """Run all requests of a file and return the tokens a second, from the first submission to the last result."""
    with tempfile.TemporaryDirectory() as folder, open_input(file) as given:
        files = JobFiles.of(file, Path(folder, "out"), None)
        with open_job(files, given, JobModel(EXAMPLES / "model", "model"), {}) as job:
            progress = BatchProgress(len(given.index), 0, time.monotonic())

            async def run_all() -> float:
                async with AsyncClient(address) as client:
                    model = served_model(client.model)
                    under_way = lines_under_way(client.model.batch_size, 1)
                    silent = lambda progress, now_s: None  # noqa: E731
                    batch = BatchRun(given, job, model, progress, silent, under_way=under_way)
                    rows = list(order_rows(order, given, model.codec))
                    started_s = time.monotonic()
                    await batch.run(client, iter(rows))
                    return progress.tokens / (time.monotonic() - started_s)

            rate = asyncio.run(run_all())
        assert not job.ending.failed
        return rate


def order_rows(order: str, given: IndexedInput, codec: TextCodec) -> Iterator[np.ndarray]:
    """Yield the rows of all requests in one of `ORDERS`, int64 [n] at a time."""
    if order == ARRIVAL:
        return input_order(given)
    if order == APART:
        is_verse = [given.request(row).custom_id.startswith("verse") for row in range(len(given.index))]
        return iter([np.argsort(is_verse, kind="stable")])
    return shared_order(given, codec, find_forecast(EXAMPLES / "model") if order == FORECAST else None)


def _row(
    batch: int, lines: int, order: str, rates: dict[str, list[float]], grown: dict[str, float]
) -> dict[str, object]:
    ratios = [mine / theirs for mine, theirs in zip(rates[order], rates[ARRIVAL], strict=True)]
    tokens, accesses = grown["tokens"], grown["hits"] + grown["misses"]
    return {
        "rows": batch,
        "order": order,
        "lines": lines,
        "pairs": len(ratios),
        "tokens/s": round(statistics.median(rates[order]), 1),
        "to arrival": str(quartiles(ratios)),
        "experts a token": round(accesses / tokens, 2),
        "found %": round(100 * grown["hits"] / accesses, 1),
        "loads a token": round(grown["loads"] / tokens, 2),
    }


def _sum(first: dict[str, float], second: dict[str, float]) -> dict[str, float]:
    return {name: first.get(name, 0.0) + value for name, value in second.items()}

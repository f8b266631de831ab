"""Measure what the order of a batch file's lines gains over that of arrival: two domains, a quarter of the experts.

The widened built-in model runs the same requests in the order of the file, in the order that `expertflow batch` chooses
by a trained predictor's forecast or by words alone, and with the domains apart: what no forecast can exceed. Runs take
turns on one engine. The gain is the ratio of tokens a second of neighbouring runs; loads say why.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
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

ARRIVAL, FORECAST, WORDS, APART = "as they arrive", "by forecast experts", "by words", "domains apart"
ORDERS = (ARRIVAL, FORECAST, WORDS, APART)
PROMPT_CHARACTERS = 160
FIRST_VERSE = "\n1 "
"""Begin of the first line of a chapter in verses; the other works have none."""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--lines", type=int, default=96)
    parser.add_argument("--tokens", type=int, default=32, help="new tokens of a line")
    parser.add_argument("--batches", type=int, nargs="+", default=[4, 8, 16], help="rows of the engine")
    parser.add_argument("--tier", choices=("disk", "host"), default="disk")
    parser.add_argument("--link-rate", default="", help="host tier: emulate a link of so many bytes a second")
    parser.add_argument("--share", default="25%", help="expert memory")
    parser.add_argument("--rounds", type=int, default=3)


def run(arguments: argparse.Namespace) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "in.jsonl")
        write_requests(file, arguments.lines, arguments.tokens)
        rows = [row for batch in arguments.batches for row in _measure(file, batch, arguments)]
    what = f"{arguments.lines} lines of two domains, {arguments.tokens} tokens, {arguments.share} of the experts"
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


def _measure(file: Path, batch: int, arguments: argparse.Namespace) -> Iterator[dict[str, object]]:
    """Yield a row for each order on one engine."""
    config = Config.load(
        "cpu-disk",
        model=widened(),
        expert_memory=arguments.share,
        batch_size=batch,
        tier=arguments.tier,
        link_rate=arguments.link_rate if arguments.tier == "host" else "",
    )
    rates: dict[str, list[float]] = {order: [] for order in ORDERS}
    grown: dict[str, dict[str, float]] = {}
    with Supervisor(config) as engine, Client(engine.address) as client:
        for round_ in range(-1, arguments.rounds):
            for order in ORDERS[: 2 if round_ < 0 else None]:  # the first round warms up
                before = read_counters(client)
                rate = run_in_order(file, engine.address, order)
                if round_ >= 0:
                    rates[order].append(rate)
                    grown[order] = _sum(grown.get(order, {}), subtract_counters(read_counters(client), before))
    for order in ORDERS:
        yield _row(batch, order, rates, grown[order])


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


def _row(batch: int, order: str, rates: dict[str, list[float]], grown: dict[str, float]) -> dict[str, object]:
    ratios = [mine / theirs for mine, theirs in zip(rates[order], rates[ARRIVAL], strict=True)]
    tokens, accesses = grown["tokens"], grown["hits"] + grown["misses"]
    return {
        "rows": batch,
        "order": order,
        "tokens/s": round(statistics.median(rates[order]), 1),
        "to arrival": round(statistics.median(ratios), 3),
        "lowest": round(min(ratios), 3),
        "highest": round(max(ratios), 3),
        "experts a token": round(accesses / tokens, 2),
        "found %": round(100 * grown["hits"] / accesses, 1),
        "loads a token": round(grown["loads"] / tokens, 2),
    }


def _sum(first: dict[str, float], second: dict[str, float]) -> dict[str, float]:
    return {name: first.get(name, 0.0) + value for name, value in second.items()}

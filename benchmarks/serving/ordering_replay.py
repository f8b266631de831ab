"""Count what the order of a batch file's lines is worth, whatever the machine: experts used and loaded, in replay.

The built-in model continues the requests of `ordering`; its true routes are then replayed in steps of so many rows, in
each order of lines, through the eviction policies with a quarter of the experts. Nothing is forecast or prefetched.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from expertflow.runtime.batch_files.job import open_input
from expertflow.runtime.batch_files.store import IndexedInput
from expertflow.runtime.replay.experiment import BELADY, Experiment
from expertflow.runtime.replay.source import ReplaySource
from expertflow.runtime.text.codec import TextCodec
from expertflow.workers.traces.trace import Trace

from ..models import EXAMPLES
from ..report import show_table
from .budget import Budget
from .ordering import ARRIVAL, ORDERS, order_rows, write_requests

MINUTES = 10.0
POLICIES = ("popularity", BELADY)
SHARE = 0.25
MODEL = EXAMPLES / "model"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--lines", type=int, default=96)
    parser.add_argument("--tokens", type=int, default=32, help="new tokens of a line")
    parser.add_argument("--batches", type=int, nargs="+", default=[4, 8, 16], help="rows of a step")


def run(arguments: argparse.Namespace, budget: Budget) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "in.jsonl")
        write_requests(file, arguments.lines, arguments.tokens)
        with open_input(file) as given:
            routes, experts = _routes(given, arguments.tokens)
            rows = [row for number in budget.rounds(len(arguments.batches))
                    for row in _replay(given, routes, experts, arguments.batches[number])]
    show_table(f"replay, {arguments.lines} lines of two domains, {SHARE:.0%} of the experts", rows, left=2)
    return {"lines": arguments.lines, "tokens": arguments.tokens, "rows": rows}


def _routes(given: IndexedInput, tokens: int) -> tuple[np.ndarray, int]:
    """Return routes of new tokens, uint16 [lines, tokens, layers, top-k], and the number of experts of a layer."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)  # tiny products
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    experts, top_k, codec = model.config.num_experts, model.config.num_experts_per_tok, TextCodec(str(MODEL))
    routes = []
    for row in range(len(given.index)):
        prompt = codec.encode(json.loads(given.request(row).body)["prompt"])
        sampling = {"max_new_tokens": tokens, "do_sample": True, "eos_token_id": None, "pad_token_id": 0}
        with torch.no_grad():
            text = model.generate(torch.tensor([prompt]), **sampling)
            scores = model(text, output_router_logits=True).router_logits
        chosen = torch.stack([layer.reshape(-1, experts).topk(top_k).indices for layer in scores], dim=1)
        routes.append(chosen[-tokens - 1 : -1].numpy().astype(np.uint16))
    return np.stack(routes), experts


def _replay(given: IndexedInput, routes: np.ndarray, experts: int, batch: int) -> Iterator[dict[str, object]]:
    """Yield a row for each order."""
    first: dict[str, float] = {}
    for order in ORDERS:
        rows = np.concatenate(list(order_rows(order, given, TextCodec(str(MODEL)))))
        source = _source(routes[rows], experts, batch)
        figures = dict(_figures(source, tokens=routes.shape[0] * routes.shape[1]))
        first = first if order != ARRIVAL else figures
        ratios = {f"{name}, times fewer": round(first[name] / figures[name], 3) for name in figures}
        yield {"rows": batch, "order": order, **{name: round(figures[name], 2) for name in figures}, **ratios}


def _source(routes: np.ndarray, experts: int, batch: int) -> ReplaySource:
    """Return a trace in which `batch` lines at a time run side by side, a token of each a step."""
    lines, tokens, layers, top_k = routes.shape
    trace = Trace(
        routes=routes.reshape(lines * tokens, layers, top_k),
        token_ids=np.zeros(lines * tokens, dtype=np.int64),
        offsets=np.arange(0, lines * tokens + 1, tokens),
        expert_count=experts,
    )
    return ReplaySource(trace, ((np.arange(lines) // batch)[:, None] * tokens + np.arange(tokens)).ravel())


def _figures(source: ReplaySource, tokens: int) -> Iterator[tuple[str, float]]:
    """Yield experts used and loaded for each token."""
    slots = round(SHARE * source.trace.layers * source.trace.expert_count)
    outcomes = {policy: Experiment(source=source, sharing="pool").run(policy, slots) for policy in POLICIES}
    yield "used a token", outcomes[BELADY].accesses / tokens
    for policy, outcome in outcomes.items():
        yield f"loaded, {policy}", (outcome.accesses - outcome.hits) / tokens

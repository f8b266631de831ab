"""Rates by batch: items encoded and users ranked a second by XSMoE, pairs scored a second by the baselines."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import msgspec
import torch
from torch import nn

from .ctr.fields import FieldTable
from .ctr.models import make_model
from .ctr.training import Pairs
from .stream import choices
from .xsmoe.growth import expand
from .xsmoe.model import HISTORY, Recommender, Sizes

BATCHES = (1, 10, 100, 1000, 10_000)
REPEATS = 3


class Rate(msgspec.Struct, frozen=True, kw_only=True):
    """Rate of one model at one batch: `unit` is items encoded, users ranked or pairs scored."""

    model: str
    unit: str
    batch: int
    per_second: float
    """A second of processor time, all threads together; median of the repeats."""
    users_per_second: float | None = None
    """Pairs scored a second divided by the items: what ranking all items for a user costs."""


def grown_model(width: int, experts: int) -> Recommender:
    """Return a model of the paper's sizes with `experts` in each side layer; rates depend on no weight."""
    torch.manual_seed(0)
    model = Recommender(Sizes(width=width))
    for layer in model.side_layers():
        for _ in range(experts - 1):
            expand(layer)
    return model.eval()


def measure_encoding(width: int, experts: int, batches: tuple[int, ...], least: float) -> list[Rate]:
    """Return items encoded a second, by active experts and batch; `least` seconds a measurement."""
    model, rates = grown_model(width, experts), []
    for name, active in choices().items():
        if "renormalised" in name or active.count >= experts:
            continue  # the same work as without, or as dense
        for batch in batches:
            states = torch.randn(2, 3, batch, width)
            seconds = median_seconds(lambda states=states, active=active: model.encode_items(states, active), least)
            rates.append(Rate(model=f"XSMoE {name}", unit="items", batch=batch, per_second=batch / seconds))
    return rates


def measure_ranking(width: int, experts: int, items: int, batches: tuple[int, ...], least: float) -> list[Rate]:
    """Return users ranked a second over `items` encoded items, which no expert takes part in."""
    model = grown_model(width, experts)
    vectors, rates = torch.randn(items, model.sizes.dim), []
    for batch in batches:
        histories = torch.randint(items, (batch, HISTORY))
        seconds = median_seconds(
            lambda histories=histories: (model.encode_users(vectors, histories) @ vectors.T).topk(min(20, items)),
            least,
        )
        rates.append(
            Rate(model="XSMoE", unit="users", batch=batch, per_second=batch / seconds, users_per_second=batch / seconds)
        )
    return rates


def measure_pairs(table: FieldTable, name: str, items: int, batches: tuple[int, ...], least: float) -> list[Rate]:
    """Return pairs scored a second by one baseline, and users ranked a second over `items` items."""
    model, rates = make_model(name, table).eval(), []
    for batch in batches:
        columns = table.batch(*_random_pairs(batch, items))
        per_second = batch / median_seconds(lambda columns=columns: model(columns), least)
        users_per_second = per_second / items
        rates.append(
            Rate(model=name, unit="pairs", batch=batch, per_second=per_second, users_per_second=users_per_second)
        )
    return rates


def _random_pairs(batch: int, items: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    pairs = Pairs(torch.zeros(batch, dtype=torch.int64), torch.randint(items, (batch,)), torch.zeros(batch))
    return pairs.users, pairs.items, torch.randint(items, (batch, HISTORY))


def median_seconds(run: Callable[[], object], least: float) -> float:
    """Return the median processor time of a call over REPEATS runs, each of as many calls as take `least` seconds.

    Processor time, since what else runs on the machine changes it little.
    """
    with torch.no_grad():
        run()
        calls = max(int(least / max(_seconds(run, 1), 1e-9)), 1)
        return statistics.median(_seconds(run, calls) / calls for _ in range(REPEATS))


def _seconds(run: Callable[[], object], calls: int) -> float:
    started = time.process_time()
    for _ in range(calls):
        run()
    return time.process_time() - started


def weight_bytes(model: nn.Module) -> int:
    """Return the bytes of all weights."""
    return sum(parameter.nbytes for parameter in model.parameters())

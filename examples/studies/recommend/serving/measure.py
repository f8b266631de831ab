"""Items encoded through the loader under several policies: exact or not, how often an expert was missed, how long."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import torch
from torch import Tensor

from .....ipc.messages import PredictStep, StepRouting
from .....runtime.replay.experiment import BELADY, Experiment
from .....runtime.replay.source import ReplaySource
from .....workers.checkpoint.survey import Survey
from .....workers.predictor.base.forecaster import Forecaster, scores
from .....workers.predictor.base.token_table import TokenTable
from .....workers.traces.trace import Trace
from ..xsmoe.model import Recommender
from ..xsmoe.side import ActiveExperts
from .encoder import ResidentFeed, ServedEncoder, SlotFeed
from .local_loader import LocalLoader
from .widened import resident_experts, survey_experts, write_experts


@dataclass(frozen=True)
class System:
    """A way to serve. `forecast`: none, table (P(expert | item), learnt on the way) or oracle (the true routing)."""

    policy: str
    by_layer: bool = False
    forecast: str = "none"


SYSTEMS = {
    "LRU, slots by layer (Cache-MoE)": System("lru", by_layer=True),
    "LRU, shared slots": System("lru"),
    "PLEC, item table": System("lru", forecast="table"),
    "PLEC, oracle": System("lru", forecast="oracle"),
    "popularity, item table (default)": System("popularity", forecast="table"),
}
COUNTED = ("lru", "popularity")
"""Policies of the replay, which counts the same routing without clock; Belady's bound stands beside them."""


class Served(msgspec.Struct, frozen=True, kw_only=True):
    """Result of one system."""

    system: str
    slots: int
    exact: bool
    """All item vectors have the bits of the reference with every expert in memory."""
    hits: int
    misses: int
    loads: int
    read_bytes: int
    stall_seconds: float
    seconds: float
    items_per_second: float


class Workload(msgspec.Struct, frozen=True, kw_only=True):
    """Size of what was served."""

    experts: int
    layers: int
    top_k: int
    expert_bytes: int
    experts_bytes: int
    steps: int
    items: int
    resident_seconds: float
    widening_error: float
    """Largest difference of an item vector from the model that was not widened."""
    counted_hit_rates: dict[str, float]
    rows: list[Served]


def serve(
    model: Recommender, states: Tensor, batches: list[np.ndarray], folder: Path, factor: int, top_k: int, share: float
) -> Workload:
    """Serve the batches (item numbers, int64 [n]) in order.

    `share` of the experts have a slot, and at least as many slots as layers are given.
    """
    layers = model.side_layers()
    experts = len(layers[0].experts)
    file = folder / "experts.safetensors"
    write_experts(model, file, factor)
    survey = survey_experts(file, len(layers), experts, top_k)
    encoder = ServedEncoder(model.eval(), ActiveExperts(top_k))
    started = time.perf_counter()
    feed = ResidentFeed(resident_experts(file))
    reference = [encoder.encode(states[:, :, items], feed) for items in batches]
    resident_seconds = time.perf_counter() - started
    routes = [routing for _, routing in reference]
    slots = max(round(share * len(layers) * experts), len(layers))

    def run(name: str) -> Served:
        system = SYSTEMS[name]
        trusts = name.startswith("PLEC")
        with LocalLoader(survey, slots, system.policy, by_layer=system.by_layer, trusts_predictions=trusts) as loader:
            return _serve(name, loader, encoder, states, batches, reference, _forecast(system, survey, routes, batches))

    rows = [run(name) for name in SYSTEMS]
    file.unlink()
    return Workload(
        experts=experts,
        layers=len(layers),
        top_k=top_k,
        expert_bytes=survey.expert_bytes,
        experts_bytes=survey.experts_bytes,
        steps=len(batches),
        items=sum(map(len, batches)),
        resident_seconds=resident_seconds,
        widening_error=_widening_error(model, states, batches[0], top_k, reference[0][0]),
        counted_hit_rates=counted_hit_rates(routes, batches, experts, slots),
        rows=rows,
    )


Forecast = Callable[[int], bytes] | None
"""Step -> scores of the loader's prediction of it."""


def _forecast(
    system: System, survey: Survey, routes: list[np.ndarray], batches: list[np.ndarray]
) -> tuple[Forecast, Forecaster | None]:
    shape = survey.layers, survey.experts
    if system.forecast == "table":
        table = TokenTable(*shape, routes[0].shape[2])
        return lambda step: scores(table.forecast(_request(step, batches[step]))), table
    if system.forecast == "oracle":
        return lambda step: _true_scores(routes[step], *shape), None
    return None, None


def _true_scores(routes: np.ndarray, layers: int, experts: int) -> bytes:
    used = np.zeros((layers, experts), dtype=np.float32)
    used[np.arange(layers)[None, :, None], routes] = 1.0
    return scores(used)


def _request(step: int, items: np.ndarray) -> PredictStep:
    rows = list(range(len(items)))
    return PredictStep(step=step, token_ids=items.tolist(), rows=rows, positions=[step] * len(items))


def _serve(
    name: str,
    loader: LocalLoader,
    encoder: ServedEncoder,
    states: Tensor,
    batches: list[np.ndarray],
    reference: list[tuple[Tensor, np.ndarray]],
    forecast: tuple[Forecast, Forecaster | None],
) -> Served:
    predict, learner = forecast
    feed, exact, started = SlotFeed(loader.residency), True, time.perf_counter()
    for step, items in enumerate(batches):
        for ahead in range(step if step == 0 else step + 1, min(step + 2, len(batches))):  # the next batch is known
            if predict is not None:
                loader.predict(ahead, predict(ahead))
        before = loader.counts
        loader.residency.begin_step(step)
        vectors, routes = encoder.encode(states[:, :, items], feed)
        exact = exact and torch.equal(vectors, reference[step][0])
        routing = _routing(step, items, routes, *(loader.counts - before))
        loader.report(routing)
        if learner is not None:
            learner.learn(routing)
    seconds, counts = time.perf_counter() - started, loader.counts
    items_done = sum(map(len, batches))
    return Served(
        system=name,
        slots=loader.ledger.statistics().held + loader.ledger.statistics().free + loader.ledger.statistics().filling,
        exact=exact,
        hits=counts.hits,
        misses=counts.misses,
        loads=loader.ledger.statistics().loads,
        read_bytes=loader.read_bytes,
        stall_seconds=counts.stall_ns / 1e9,
        seconds=seconds,
        items_per_second=items_done / seconds,
    )


def _routing(step: int, items: np.ndarray, routes: np.ndarray, hits: int, misses: int, stall_ns: int) -> StepRouting:
    asked = _request(step, items)
    return StepRouting(
        step=step,
        token_ids=asked.token_ids,
        rows=asked.rows,
        positions=asked.positions,
        top_k=routes.shape[2],
        experts=routes.astype("<u2").tobytes(),
        hits=hits,
        misses=misses,
        stall_ns=stall_ns,
    )


def counted_hit_rates(
    routes: list[np.ndarray], batches: list[np.ndarray], experts: int, slots: int
) -> dict[str, float]:
    """Return the hit rate by policy, with Belady's bound, of an event-atomic replay of the routing."""
    lengths = [len(items) for items in batches]
    trace = Trace(
        routes=np.concatenate(routes),
        token_ids=np.concatenate(batches),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        expert_count=experts,
    )
    source = ReplaySource(trace, np.repeat(np.arange(len(batches)), lengths))
    experiment = Experiment(source=source, sharing="pool")
    return {name: experiment.run(name, slots).hit_rate for name in (*COUNTED, BELADY)}


def _widening_error(model: Recommender, states: Tensor, items: np.ndarray, top_k: int, widened: Tensor) -> float:
    with torch.no_grad():
        narrow = model.encode_items(states[:, :, items], ActiveExperts(top_k))
    return float((narrow - widened).abs().max())

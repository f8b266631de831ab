"""Tiny path predictors and made-up traces for the tests."""

from __future__ import annotations

import msgspec
import numpy as np
import torch
from expertflow.ipc.messages import PredictStep, StepRouting
from expertflow.workers.predictor.base.predictor_file import Header
from expertflow.workers.predictor.base.token_table import count_tokens
from expertflow.workers.predictor.path.file import KIND, PathFile, PathShape, TokenCounts, compact_counts
from expertflow.workers.predictor.path.forecaster import PathForecaster
from expertflow.workers.predictor.training.module import PathModule
from expertflow.workers.traces.trace import Trace

LAYERS, EXPERTS, TOP_K = 3, 8, 2
SHAPE = PathShape(
    layers=LAYERS, experts=EXPERTS, top_k=TOP_K, code=8, hidden=16, inner=24, heads=2, key=4, window=6, grams=16
)
VOCABULARY = [f"Ġword{number}" for number in range(20)]


def made_up_trace(sequences: int = 12, length: int = 14, seed: int = 0) -> Trace:
    """Experts follow from the token and from a topic of the sequence: earlier tokens say something about later ones."""
    rng = np.random.default_rng(seed)
    token_ids = rng.integers(0, len(VOCABULARY), sequences * length)
    topics = np.repeat(rng.integers(0, EXPERTS // 2, sequences), length)
    by_token = (token_ids[:, None] * (1 + np.arange(LAYERS))) % (EXPERTS // 2)
    by_topic = EXPERTS // 2 + (topics[:, None] + np.arange(LAYERS)) % (EXPERTS // 2)
    return Trace(
        routes=np.stack([by_token, by_topic], axis=2).astype(np.uint16),
        token_ids=token_ids,
        offsets=np.arange(0, sequences * length + 1, length),
        expert_count=EXPERTS,
        vocabulary=VOCABULARY,
    )


def popularity_of(trace: Trace) -> torch.Tensor:
    counts, _ = count_tokens(trace)
    return torch.from_numpy((counts.sum(axis=0) / trace.tokens).astype(np.float32))


def untrained(trace: Trace, shape: PathShape = SHAPE, noise: float = 0.0) -> PathModule:
    """A module in its first state, in which it mixes the evidence; `noise` is added to all its weights."""
    torch.manual_seed(1)
    module = PathModule(shape, popularity_of(trace)).eval()
    with torch.no_grad():
        for value in module.parameters():
            value += noise * torch.randn_like(value)
        if module.grams is not None:
            module.grams.weight[-1] = 0
    return module


def file_of(module: PathModule, trace: Trace) -> PathFile:
    weights = {name: value.numpy().copy() for name, value in module.state_dict().items()}
    return PathFile(Header(kind=KIND, shape=module.shape), weights, table_of(trace))


def table_of(trace: Trace) -> TokenCounts:
    counts, seen = count_tokens(trace)
    names = np.arange(len(seen)) if trace.vocabulary is None else np.array(trace.vocabulary)[: len(seen)]
    return compact_counts(counts, seen, names)


def forecaster_of(module: PathModule, trace: Trace, adapts: bool = False) -> PathForecaster:
    return PathForecaster(file_of(module, trace), VOCABULARY.__getitem__, adapts)


def random_path(layers: int, experts: int, top_k: int) -> PathForecaster:
    """An untrained predictor of these sizes, with noise for weights, that knows some tokens."""
    rng = np.random.default_rng(0)
    trace = Trace(
        routes=np.argsort(rng.random((40, layers, experts)), axis=2)[:, :, :top_k].astype(np.uint16),
        token_ids=rng.integers(0, 30, 40),
        offsets=np.array([0, 40]),
        expert_count=experts,
    )
    shape = msgspec.structs.replace(SHAPE, layers=layers, experts=experts, top_k=top_k, grams=0)
    return PathForecaster(file_of(untrained(trace, shape, noise=0.3), trace))


def ask(trace: Trace, row: int, positions: list[int], sequence: int = 0) -> PredictStep:
    places = trace.offsets[sequence] + np.array(positions)
    return PredictStep(
        step=positions[0], token_ids=trace.token_ids[places].tolist(), rows=[row] * len(positions), positions=positions
    )


def tell(
    trace: Trace, row: int, positions: list[int], sequence: int = 0, routes: np.ndarray | None = None
) -> StepRouting:
    """`routes` [tokens, layers, top_k] instead of those of the trace."""
    places = trace.offsets[sequence] + np.array(positions)
    experts = trace.routes[places] if routes is None else routes
    return StepRouting(
        step=positions[0], token_ids=trace.token_ids[places].tolist(), rows=[row] * len(positions),
        positions=positions, top_k=TOP_K, experts=experts.astype("<u2").tobytes(), hits=0, misses=0, stall_ns=0,
    )  # fmt: skip

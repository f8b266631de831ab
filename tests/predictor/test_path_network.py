"""Inference in numpy is the network that was trained, and it looks at nothing that it could not know."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from expertflow.tests.predictor.paths import (
    SHAPE,
    TOP_K,
    ask,
    file_of,
    forecaster_of,
    made_up_trace,
    popularity_of,
    tell,
    untrained,
)
from expertflow.workers.predictor.base.token_table import count_tokens
from expertflow.workers.predictor.path.forecaster import PathForecaster
from expertflow.workers.predictor.training.module import Batch
from expertflow.workers.predictor.training.sequences import Sequences
from expertflow.workers.traces.trace import Trace

LENGTH = 14


def batch_of(trace: Trace, routing_known: bool) -> Batch:
    """All sequences, with the token table as it will be used: made from the whole trace."""
    counts, seen = count_tokens(trace)
    popularity = popularity_of(trace)
    sequences = Sequences(trace, counts, seen, popularity, SHAPE.grams)
    batch = next(sequences.batches(sequences.pieces()))
    has_routing = torch.full_like(batch.has_routing, routing_known)
    prior = torch.from_numpy(counts[batch.tokens.numpy()]).float() + popularity
    sightings = torch.from_numpy(seen[batch.tokens.numpy()]).float()
    return replace(
        batch, table_probabilities=prior / (sightings[..., None] + 1), seen=sightings, has_routing=has_routing
    )


@torch.no_grad()
def torch_probabilities(trace: Trace, noise: float, routing_known: bool) -> np.ndarray:
    return torch.sigmoid(untrained(trace, noise=noise)(batch_of(trace, routing_known))).numpy()


def decoded(forecaster: PathForecaster, trace: Trace, sequence: int) -> np.ndarray:
    """Token by token, each after the routing of those before."""
    forecasts = []
    for position in range(LENGTH):
        forecasts.append(forecaster.forecast_tokens(ask(trace, 7, [position], sequence))[0])
        forecaster.learn(tell(trace, 7, [position], sequence))
    return np.stack(forecasts)


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_decode_in_numpy_equals_torch(noise: float) -> None:
    trace = made_up_trace(sequences=2)
    expected = torch_probabilities(trace, noise, routing_known=True)
    forecaster = forecaster_of(untrained(trace, noise=noise), trace)
    for sequence in range(2):
        assert np.abs(decoded(forecaster, trace, sequence) - expected[sequence]).max() < 2e-4


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_prefill_in_numpy_equals_torch(noise: float) -> None:
    trace = made_up_trace(sequences=2)
    expected = torch_probabilities(trace, noise, routing_known=False)
    forecaster = forecaster_of(untrained(trace, noise=noise), trace)
    for sequence in range(2):
        found = forecaster.forecast_tokens(ask(trace, sequence, list(range(LENGTH)), sequence))
        assert np.abs(found - expected[sequence]).max() < 2e-4


@torch.no_grad()
def test_training_never_sees_routing_that_is_to_be_forecast() -> None:
    """Neither the token's own routing nor anything later may change a forecast, or the figures would be lies."""
    trace = made_up_trace(sequences=2)
    module, batch = untrained(trace, noise=0.3), batch_of(trace, routing_known=True)
    before = module(batch)
    for first in (0, 5, LENGTH - 1):
        multi_hot, tokens = batch.multi_hot.clone(), batch.tokens.clone()
        multi_hot[:, first:] = multi_hot[:, first:].roll(1, dims=-1)
        tokens[:, first + 1 :] = (tokens[:, first + 1 :] + 1) % 20
        after = module(replace(batch, multi_hot=multi_hot, tokens=tokens))
        assert torch.allclose(before[:, : first + 1], after[:, : first + 1], atol=1e-5)
    assert not torch.allclose(before, module(replace(batch, multi_hot=batch.multi_hot.roll(1, dims=-1))), atol=1e-2)


@torch.no_grad()
def test_hidden_routing_has_no_say() -> None:
    trace = made_up_trace(sequences=2)
    module, batch = untrained(trace, noise=0.3), batch_of(trace, routing_known=False)
    other = replace(batch, multi_hot=batch.multi_hot.roll(1, dims=-1))
    assert torch.allclose(module(batch), module(other), atol=1e-5)


def test_a_forecast_depends_on_the_routing_before() -> None:
    trace = made_up_trace()
    one, other = (forecaster_of(untrained(trace, noise=0.3), trace) for _ in range(2))
    one.learn(tell(trace, 0, list(range(8))))
    other.learn(tell(trace, 0, list(range(8)), routes=(trace.routes[:8] + 1) % SHAPE.experts))
    assert np.abs(one.forecast_tokens(ask(trace, 0, [8])) - other.forecast_tokens(ask(trace, 0, [8]))).max() > 0.01


def test_the_own_sequence_is_left_out_of_the_table_it_is_judged_by() -> None:
    """With it a rare token's table would hold the very routing to be forecast."""
    trace = made_up_trace(sequences=3)
    counts, seen = count_tokens(trace)
    sequences = Sequences(trace, counts, seen, popularity_of(trace), 0)
    batch = next(sequences.batches(sequences.pieces()[:1]))
    others = trace.take(np.array([1, 2]))
    for place, token in enumerate(batch.tokens[0].tolist()):
        assert batch.seen[0, place] == (others.token_ids == token).sum()


def test_a_file_of_another_top_k_learns_nothing_from_it() -> None:
    trace = made_up_trace()
    forecaster = PathForecaster(file_of(untrained(trace), trace))
    wrong = np.zeros((1, SHAPE.layers, TOP_K + 1))
    message = tell(trace, 0, [0], routes=wrong)
    forecaster.learn(message)
    untouched = PathForecaster(file_of(untrained(trace), trace))
    assert np.array_equal(forecaster.forecast_tokens(ask(trace, 0, [1])), untouched.forecast_tokens(ask(trace, 0, [1])))

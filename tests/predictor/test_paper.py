"""The paper's transformer, token by token with a cache: as if all known tokens were read anew."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from expertflow.ipc.messages import PredictStep, StepRouting
from expertflow.workers.predictor.base.predictor_file import Header
from expertflow.workers.predictor.t5 import forecaster as paper_forecaster
from expertflow.workers.predictor.t5.file import FIRST, KIND, T5File, T5Shape
from expertflow.workers.predictor.t5.forecaster import T5Forecaster, window_start
from expertflow.workers.predictor.t5.module import T5Module, pad

SHAPE = T5Shape(
    layers=2, experts=4, top_k=1, vocabulary=FIRST + 20, width=16, inner=32, blocks=2, heads=2, head=8, window=8
)


@pytest.fixture
def module() -> T5Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return T5Module(SHAPE).eval()


def forecaster(module: T5Module) -> T5Forecaster:
    weights = {name: value.numpy().copy() for name, value in module.state_dict().items()}
    return T5Forecaster(T5File(Header(kind=KIND, shape=SHAPE), weights, np.arange(20)))


def used(row: int, positions: list[int], tokens: list[int]) -> StepRouting:
    routing = np.zeros((len(tokens), SHAPE.layers, SHAPE.top_k), dtype=np.uint16).tobytes()
    rows = [row] * len(tokens)
    return StepRouting(
        step=0, token_ids=tokens, rows=rows, positions=positions, top_k=1, experts=routing, hits=0, misses=0, stall_ns=0
    )


def forecast(paper: T5Forecaster, tokens: list[int], rows: list[int], positions: list[int]) -> np.ndarray:
    """[tokens, layers, experts]"""
    ((indices, probabilities),) = paper.parts(PredictStep(step=0, token_ids=tokens, rows=rows, positions=positions))
    return probabilities[np.argsort(indices)]


@torch.no_grad()
def read_anew(module: T5Module, prompt: list[int], known: list[int]) -> np.ndarray:
    """[layers, experts] of the last known token."""
    input_ids = [[FIRST + token for token in sequence[-SHAPE.window :]] for sequence in (prompt, known)]
    return torch.sigmoid(module(pad(input_ids[:1]), pad(input_ids[1:]))[0, -1]).numpy()


@pytest.mark.parametrize("cached", [16_384, 0])
def test_a_step_is_as_if_everything_were_read_anew(
    module: T5Module, monkeypatch: pytest.MonkeyPatch, cached: int
) -> None:
    monkeypatch.setattr(paper_forecaster, "CACHED_TOKENS", cached)
    paper = forecaster(module)
    prompts, tokens = {7: [3, 1, 4], 9: [1, 5]}, {7: [9, 2, 6, 5, 3], 9: [5, 8, 9, 7, 9]}
    for row, prompt in prompts.items():
        paper.learn(used(row, list(range(len(prompt))), prompt))
    for step in range(5):
        coming = [tokens[row][step] for row in prompts]
        positions = [len(prompt) + step for prompt in prompts.values()]
        probabilities = forecast(paper, coming, list(prompts), positions)
        for line, (row, prompt) in enumerate(prompts.items()):
            expected = read_anew(module, prompt, tokens[row][: step + 1])
            np.testing.assert_allclose(probabilities[line], expected, atol=1e-5)
            paper.learn(used(row, [positions[line]], [coming[line]]))


def test_beyond_the_window_the_latest_tokens_are_read(module: T5Module) -> None:
    paper = forecaster(module)
    tokens = [step % 19 for step in range(21)]
    paper.learn(used(1, [0, 1], [3, 1]))
    for step, token in enumerate(tokens):
        probabilities = forecast(paper, [token], [1], [2 + step])
        known = tokens[: step + 1]
        expected = read_anew(module, [3, 1], known[window_start(len(known), SHAPE.window) :])
        np.testing.assert_allclose(probabilities[0], expected, atol=1e-5)
        paper.learn(used(1, [2 + step], [token]))


def test_a_window_begins_where_a_cache_can_go_on() -> None:
    starts = [window_start(count, 8) for count in range(1, 30)]
    assert all(0 < count - start <= 8 for count, start in zip(range(1, 30), starts, strict=True))
    assert len(set(starts)) == 7

"""Forecasts for a model with an encoder: each stack learns from its own tokens, and answers for its own layers."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from expertflow import Config
from expertflow.errors import UsageError
from expertflow.ipc.messages import PredictStep, StepRouting
from expertflow.workers.predictor.base.forecaster import Forecaster
from expertflow.workers.predictor.base.model_shape import ModelShape
from expertflow.workers.predictor.registry import make_forecaster
from expertflow.workers.traces.routing import UNROUTED, lay_out, seen_layers

LAYERS, ENCODER_LAYERS, EXPERTS = 5, 2, 8
SUBJECT = ModelShape(layers=LAYERS, experts=EXPERTS, top_k=1, encoder_layers=ENCODER_LAYERS)
SOURCES, OUTPUTS = [3, 4], [0, 3]


def made(predictor: str, **options: str) -> Forecaster:
    forecaster = make_forecaster(Config.load(model="m", predictor=predictor, **options), SUBJECT)
    assert forecaster is not None
    return forecaster


def prefill(step: int = 1, row: int = 0) -> StepRouting:
    """Token t of a prompt takes expert t everywhere, token t of an output expert t + 1."""
    ids = SOURCES + OUTPUTS
    seen = seen_layers(len(ids), len(SOURCES), LAYERS, ENCODER_LAYERS)
    wanted = [*SOURCES, *(token + 1 for token in OUTPUTS)]
    layers = {layer: np.array(wanted, "<u2")[seen[:, layer], None] for layer in range(LAYERS)}
    return StepRouting(
        step=step,
        token_ids=ids,
        rows=[row] * len(ids),
        positions=[0, 1, 0, 1],
        top_k=1,
        experts=lay_out(layers, seen, UNROUTED).tobytes(),
        hits=0,
        misses=0,
        stall_ns=0,
        sources=len(SOURCES),
    )


def likeliest(forecaster: Forecaster, sources: list[int], outputs: list[int], position: int = 0) -> np.ndarray:
    """[tokens, layers]; -1 where nothing is expected."""
    ids = sources + outputs
    where = {"rows": [0] * len(ids), "positions": [position] * len(ids)}
    routes = forecaster.forecast_tokens(PredictStep(step=2, token_ids=ids, sources=len(sources), **where))
    return np.where(routes.any(axis=2), routes.argmax(axis=2), -1)


def test_a_token_id_is_counted_apart_in_prompts_and_outputs() -> None:
    table = made("table")
    for step in range(3):
        table.learn(prefill(step))
    assert likeliest(table, [3, 4], [3]).tolist() == [[3, 3, -1, -1, -1], [4, 4, -1, -1, -1], [-1, -1, 4, 4, 4]]


def test_decode_steps_expect_nothing_of_the_encoder() -> None:
    previous = made("previous")
    assert previous.follows_rows
    previous.learn(prefill())
    assert likeliest(previous, [], [7], position=2).tolist() == [[-1, -1, 4, 4, 4]]


@pytest.mark.parametrize("predictor", ["matrices", "everything", "noise", "opposite"])
def test_every_other_predictor_answers_for_all_layers(predictor: str) -> None:
    forecaster = made(predictor)
    forecaster.learn(prefill())
    whole = forecaster.forecast(PredictStep(step=2, token_ids=[3, 4], rows=[0, 0], positions=[0, 0], sources=1))
    assert whole.shape == (LAYERS, EXPERTS) and (whole.max(axis=1) > 0).all()


def test_an_oracle_knows_both(tmp_path: Path) -> None:
    (tmp_path / "routes.1.msgpack").write_bytes(msgspec.msgpack.encode(prefill()))
    oracle = made("oracle", oracle_routes=str(tmp_path))
    assert likeliest(oracle, [3], [0]).tolist() == [[3, 3, -1, -1, -1], [-1, -1, 1, 1, 1]]


@pytest.mark.parametrize(
    "wrong", [{"sources": 10**6}, {"sources": -5}, {"experts": b"\1"}, {"token_ids": []}, {"top_k": 0}], ids=str
)
def test_a_malformed_message_neither_teaches_nor_breaks(wrong: dict[str, object]) -> None:
    table = made("table")
    table.learn(msgspec.structs.replace(prefill(), **wrong))
    assert len(set(likeliest(table, [3], [3]).ravel().tolist())) == 2  # -1, and the first of equals


def test_the_papers_predictor_is_refused() -> None:
    with pytest.raises(UsageError, match="as one text, which this model does not"):
        made("paper")

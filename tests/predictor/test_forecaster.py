"""Scores on the wire, the choice of a predictor, and those that lie."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from expertflow.configs.schema import Config
from expertflow.errors import UsageError
from expertflow.tests.predictor.routes import coming, same_everywhere, used_of
from expertflow.workers.predictor.base.forecaster import scores
from expertflow.workers.predictor.base.model_shape import ModelShape
from expertflow.workers.predictor.base.token_table import TokenTable
from expertflow.workers.predictor.baselines import Noise, Opposite
from expertflow.workers.predictor.registry import make_forecaster

LAYERS, EXPERTS, TOP_K = 3, 8, 2
SUBJECT = ModelShape(layers=LAYERS, experts=EXPERTS, top_k=TOP_K)


def test_scores_are_bytes_of_probability() -> None:
    assert scores(np.array([[0.0, 0.5], [0.996, 1.0]])) == bytes([0, 128, 254, 255])


def test_scores_of_nonsense_stay_in_range() -> None:
    """Wrapping around would turn the unlikely into the certain."""
    with np.errstate(all="raise"):
        assert scores(np.array([[np.nan, np.inf, -np.inf, -0.1, 7.0]])) == bytes([0, 255, 0, 0, 255])


@pytest.mark.parametrize(("name", "kind"), [("table", TokenTable), ("noise", Noise), ("opposite", Opposite)])
def test_the_configuration_names_the_predictor(name: str, kind: type) -> None:
    forecaster = make_forecaster(Config.load(predictor=name), SUBJECT)
    assert forecaster is not None and isinstance(forecaster, kind)
    assert forecaster.forecast(coming(0, [1])).shape == (LAYERS, EXPERTS)


def test_no_predictor_is_simply_absent() -> None:
    assert make_forecaster(Config.load(predictor="none"), SUBJECT) is None


def test_an_oracle_without_a_recording_is_refused_at_once(tmp_path: Path) -> None:
    for missing in (tmp_path / "nothing", tmp_path):
        config = Config.load(predictor="oracle", oracle_routes=str(missing))
        with pytest.raises(UsageError, match="no recording"):
            make_forecaster(config, SUBJECT)


def test_noise_is_the_same_for_the_same_seed_and_step() -> None:
    """A failing run must be repeatable."""
    one, same, other = (Noise(LAYERS, EXPERTS, seed) for seed in (1, 1, 2))
    assert np.array_equal(one.forecast(coming(5, [1])), same.forecast(coming(5, [9])))
    assert not np.array_equal(one.forecast(coming(5, [1])), one.forecast(coming(6, [1])))
    assert not np.array_equal(one.forecast(coming(5, [1])), other.forecast(coming(5, [1])))


def test_the_opposite_wants_exactly_what_the_table_does_not() -> None:
    honest, opposite = TokenTable(LAYERS, EXPERTS, TOP_K), Opposite(TokenTable(LAYERS, EXPERTS, TOP_K))
    for step in range(9):
        honest.learn(used_of(step, [7], same_everywhere(LAYERS, [1, 5])))
        opposite.learn(used_of(step, [7], same_everywhere(LAYERS, [1, 5])))
    wanted, unwanted = honest.forecast(coming(0, [7])) > 0.5, opposite.forecast(coming(0, [7])) > 0.5
    assert wanted.any()
    assert np.array_equal(wanted, ~unwanted)

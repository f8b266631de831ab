"""The names of predictors: one list in the configuration, and whatever else names them agrees with it."""

from __future__ import annotations

from typing import get_args, get_type_hints

from expertflow.configs.schema import Predictor, TraceablePredictor
from expertflow.runtime.commands.replay import Replay
from expertflow.runtime.commands.train import PROMPTS, Train
from expertflow.workers.predictor.registry import _MAKERS
from expertflow.workers.predictor.training.kinds import TRAINERS


def test_every_predictor_that_can_be_named_can_be_made() -> None:
    """A name without a maker would be a KeyError in an engine that has started."""
    assert {*get_args(Predictor)} == {"auto", "none", *_MAKERS}
    assert len(get_args(Predictor)) == len({*get_args(Predictor)})


def test_replay_takes_the_predictors_that_need_a_trace_alone() -> None:
    assert {*get_args(get_type_hints(Replay)["predictor"])} == {"none", "recorded", *get_args(TraceablePredictor)}
    assert {*get_args(Predictor)} - {*get_args(TraceablePredictor)} == {"auto", "none", "noise", "opposite", "oracle"}


def test_every_kind_that_can_be_trained_has_a_trainer() -> None:
    kinds = {*get_args(get_type_hints(Train)["kind"])}
    assert kinds - {"gates"} == {*TRAINERS} == {*PROMPTS}
    assert {*TRAINERS} <= {*get_args(Predictor)}

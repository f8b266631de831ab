"""The predictor that comes with the built-in model knows its routing better than the token alone tells."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from expertflow.configs.schema import Config
from expertflow.examples.routing_report import WINDOW_TOKENS, read_ids, read_text
from expertflow.workers.checkpoint.widen import widen
from expertflow.workers.predictor.base.model_shape import ModelShape
from expertflow.workers.predictor.judging.figures import Figures, judge
from expertflow.workers.predictor.judging.replay import decode
from expertflow.workers.predictor.path.file import read_path
from expertflow.workers.predictor.path.forecaster import load_path
from expertflow.workers.predictor.registry import FILE_NAME, make_forecaster
from expertflow.workers.surveyor.surveyor import survey_checkpoint
from expertflow.workers.traces.trace import Trace
from transformers import AutoModelForCausalLM, AutoTokenizer

EXAMPLES = Path(__file__).parents[2] / "examples"
FOLDER = EXAMPLES / "model"
ROUTED_TOKENS = 12 * WINDOW_TOKENS + 1


@pytest.fixture(scope="module")
def shape() -> ModelShape:
    return ModelShape.of(survey_checkpoint(str(FOLDER)))


@pytest.fixture(scope="module")
def held_out(one_thread: None) -> Trace:
    model = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    ids = torch.tensor(tokenizer.backend_tokenizer.encode((EXAMPLES / "held_out.txt").read_text()).ids)[:ROUTED_TOKENS]
    routes = read_text(model, ids).chosen.permute(1, 0, 2).numpy().astype(np.uint16)
    return Trace(
        routes=routes,
        token_ids=read_ids(ids).numpy(),
        offsets=np.arange(0, len(routes) + 1, WINDOW_TOKENS),
        expert_count=model.config.num_experts,
    )


@pytest.fixture(scope="module")
def figures(shape: ModelShape, held_out: Trace) -> Figures:
    return judge(decode(load_path(FOLDER / FILE_NAME, shape), held_out, rows=8))


def test_the_predictor_file_takes_at_most_four_megabytes() -> None:
    assert (FOLDER / FILE_NAME).stat().st_size <= 4_000_000


def test_a_third_of_what_the_token_leaves_open_is_known(figures: Figures) -> None:
    """Text, documents and windows that neither the model nor the predictor learned from."""
    table = json.loads((FOLDER / "figures.json").read_text())["routing"]["table_recall_at_4"]
    assert (figures.recall - table) / (1 - table) >= 0.35


def test_its_probabilities_are_chances(figures: Figures) -> None:
    assert figures.calibration_error < 0.02
    assert figures.precision > 0.75


def test_it_serves_a_widened_copy(tmp_path: Path) -> None:
    """Least surprise: the copy routes the same, so what is known of it holds."""
    widen(FOLDER, tmp_path / "wide", 2)
    shape = ModelShape.of(survey_checkpoint(str(tmp_path / "wide")))
    assert make_forecaster(Config.load(predictor="path"), shape) is not None


def test_it_says_which_model_it_belongs_to(shape: ModelShape) -> None:
    header = read_path(FOLDER / FILE_NAME).header
    assert header.model == shape.fingerprint != ""
    assert header.figures["decode_recall"] > 0.75

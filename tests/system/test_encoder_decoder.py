"""I1a and I1b of models with an encoder, and the mutants: who may use up capacity, whose prompt a row attends to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from expertflow.ipc.messages import RequestRow, RunStep, Sampling, StepRouting
from expertflow.runtime.verify.local_runtime import LocalRuntime
from expertflow.tests.compute.watching import seen_in_two_steps
from expertflow.tests.models.switch import save_switch
from expertflow.tests.system.encoder_decoders import (
    BUDGETS,
    SEEN,
    TOLERANCE,
    digests,
    error_of_recomputed,
    expect_logits_of_the_library,
    expect_tokens_of_the_library,
    run,
    surveyed,
)
from expertflow.workers.compute.experts.next_router import NextRouters
from expertflow.workers.model import cache_rows as cache_rows
from expertflow.workers.model.encoder_decoder import EncoderDecoderUnit
from expertflow.workers.model.families.switch import SwitchBlock
from expertflow.workers.model.unit import RowAbilities
from expertflow.workers.traces.routing import UNROUTED, read_partial_routing, read_routing
from transformers import SwitchTransformersForConditionalGeneration


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("switch")
    save_switch(folder)
    return folder


@pytest.fixture(scope="module")
def library(folder: Path) -> Any:
    return SwitchTransformersForConditionalGeneration.from_pretrained(folder).eval()


def test_survey_counts_the_layers_of_both(folder: Path) -> None:
    survey = surveyed(folder)
    assert (survey.layers, survey.encoder_layers, survey.experts, survey.top_k) == (4, 2, 8, 1)
    assert survey.rows.padding, survey.rows.reason
    assert survey.rows.moving, survey.rows.reason


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_logits_equal_transformers_alone_and_unpadded(folder: Path, library: Any, batch: int) -> None:
    """I1b with rows that join, leave and are split, at a quarter of the experts: every token and every logit."""
    expect_logits_of_the_library(folder, library, batch)


@pytest.mark.parametrize(
    ("budget", "tier", "dtype"),
    [("one", "disk", "float32"), ("few", "host", "bfloat16"), ("quarter", "disk", "float32")],
)
def test_logits_are_bit_identical_to_resident(folder: Path, budget: str, tier: str, dtype: str) -> None:
    """I1a."""
    assert digests(folder, BUDGETS["all"], "disk", dtype) == digests(folder, BUDGETS[budget], tier, dtype)


def test_rows_computed_again_keep_the_decisions_of_capacity(folder: Path, library: Any) -> None:
    """At once they get what they got one by one, when nothing was dropped."""
    assert error_of_recomputed(folder, library) <= TOLERANCE


def test_routing_says_which_layers_a_token_saw(folder: Path) -> None:
    survey = surveyed(folder)
    heard: list[StepRouting] = []
    with LocalRuntime(survey, 8, RowAbilities.of(survey.rows)) as runtime:
        for step in (
            RunStep(
                number=0, unit=0, admit=[RequestRow(7, [5, 6, 7], 0, Sampling()), RequestRow(9, [8], 0, Sampling())]
            ),
            RunStep(number=1, unit=0),
        ):
            used = runtime.run(step)[1]
            assert used is not None
            heard.append(used)
    routing = [read_partial_routing(used, survey.layers, survey.experts) for used in heard]
    assert [used.token_ids[:4] for used in heard][0] == [5, 6, 7, 8]
    assert heard[0].rows == [7, 7, 7, 9, 7, 9]
    assert routing[0] is not None and routing[1] is not None
    assert ((routing[0] == UNROUTED)[:, :, 0] == np.repeat([[0, 0, 1, 1], [1, 1, 0, 0]], [4, 2], axis=0)).all()
    assert ((routing[1] == UNROUTED)[:, :, 0] == [[1, 1, 0, 0]] * 2).all()
    assert read_routing(heard[0], survey.layers, survey.experts) is None


def test_the_next_router_is_asked_within_encoder_and_decoder_and_not_between_them(folder: Path) -> None:
    survey = surveyed(folder)
    with LocalRuntime(survey, survey.expert_count) as runtime, torch.inference_mode():
        source = NextRouters(runtime.model, survey.experts)
        seen = seen_in_two_steps(runtime, source, survey)
        rankings = [source.ranking(layer - 1, hidden, 2) if layer else None for layer, hidden, _ in seen]
    assert not source.refusals
    assert [layer for layer, _, _ in seen] == [0, 1, 2, 3, 2, 3]
    for (layer, _, routes), ranking in zip(seen, rankings, strict=True):
        assert (ranking is None) == (layer in (0, 2))
        assert ranking is None or (ranking[:, :1] == routes).all()


# Mutants


@pytest.fixture
def no_dropping(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(SwitchBlock, "_within_capacity", lambda self, index: torch.ones_like(index, dtype=torch.bool))
    yield


@pytest.mark.usefixtures("no_dropping")
def test_mutant_without_capacity_is_caught(folder: Path, library: Any) -> None:
    watched, driver = run(folder, 8, 1)
    assert watched.worst_error(library, driver) > SEEN


def test_mutant_padding_that_uses_up_capacity_is_caught(
    folder: Path, library: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library's own way."""
    monkeypatch.setattr(SwitchBlock, "_real", lambda self: None)
    watched, driver = run(folder, 8, 8)
    assert watched.worst_error(library, driver) > SEEN


def test_mutant_capacity_in_the_decoder_is_caught(folder: Path, library: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens computed again at once would be dropped where one by one none was."""
    honest = SwitchBlock.forward

    def as_if_encoder(self: Any, hidden: torch.Tensor) -> torch.Tensor:
        self.path = self.path.replace("decoder.", "other.")
        return honest(self, hidden)

    monkeypatch.setattr(SwitchBlock, "forward", as_if_encoder)
    assert error_of_recomputed(folder, library) > SEEN


def test_mutant_prompts_that_stay_when_rows_move_are_caught(
    folder: Path, library: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys of the prompts taken in another order than the rows."""
    honest = cache_rows.take

    def mixed_up(cache: Any, places: list[int]) -> None:
        half = len(cache.layers) // 2
        others = [cache_rows._take_rows(layer, places[::-1]) for layer in cache.layers[half:]]
        honest(cache, places)
        cache.layers[half:] = others

    monkeypatch.setattr(cache_rows, "take", mixed_up)
    watched, driver = run(folder, 8, 8)
    assert watched.worst_error(library, driver) > SEEN


def test_mutant_prompt_mask_off_by_one_is_caught(folder: Path, library: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """In decode steps: at the prefill it would be another step's tokens."""
    honest = EncoderDecoderUnit._pads
    monkeypatch.setattr(EncoderDecoderUnit, "_pads", lambda self: (honest(self) - min(self.length, 1)).clamp(min=0))
    watched, driver = run(folder, 8, 8)
    assert watched.worst_error(library, driver) > SEEN


# All processes


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_the_pipeline_gives_the_tokens_of_transformers(folder: Path, library: Any) -> None:
    expect_tokens_of_the_library(folder, library)


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("stage", ["scheduler", "predictor", "loader", "compute"])
def test_a_death_changes_no_token(folder: Path, library: Any, stage: str) -> None:
    """I4: what was generated is computed again at once, against capacity."""
    expect_tokens_of_the_library(folder, library, kill=stage)

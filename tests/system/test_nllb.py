"""I1a and I1b of NLLB-MoE, against the library with its routing mended, and the mutants."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from expertflow import Client, Config, Supervisor
from expertflow.ipc.messages import RequestRow, RunStep, Sampling
from expertflow.runtime.verify.local_runtime import LocalRuntime
from expertflow.tests.models.nllb import LANGUAGE, VOCABULARY, save_nllb
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
from expertflow.tests.system.references import random_prompts
from expertflow.workers.model.families import nllb
from expertflow.workers.model.families.nllb import NllbBlock, NllbExperts
from expertflow.workers.model.families.registry import correct_blocks
from expertflow.workers.model.unit import RowAbilities
from transformers import GenerationConfig, NllbMoeForConditionalGeneration

OUTPUT = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nllb")
    save_nllb(folder)
    settings = GenerationConfig.from_pretrained(folder)
    settings.forced_bos_token_id = LANGUAGE
    settings.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def library(folder: Path) -> Any:
    model = NllbMoeForConditionalGeneration.from_pretrained(folder).eval()
    correct_blocks(model)
    return model


def test_survey_counts_the_layers_of_both(folder: Path) -> None:
    survey = surveyed(folder)
    assert (survey.layers, survey.encoder_layers, survey.experts, survey.top_k) == (4, 2, 8, 2)
    assert survey.rows.padding, survey.rows.reason
    assert survey.rows.moving, survey.rows.reason


@pytest.mark.parametrize("batch", [1, 8])
def test_logits_equal_transformers_alone_and_unpadded(folder: Path, library: Any, batch: int) -> None:
    """I1b with rows that join, leave and are split, at a quarter of the experts: every token and every logit."""
    expect_logits_of_the_library(folder, library, batch)


@pytest.mark.parametrize(
    ("budget", "tier", "dtype"),
    [
        ("one", "disk", "float32"),
        ("few", "host", "bfloat16"),
        pytest.param("quarter", "disk", "float16", marks=pytest.mark.slow),
    ],
)
def test_logits_are_bit_identical_to_resident(folder: Path, budget: str, tier: str, dtype: str) -> None:
    """I1a."""
    assert digests(folder, BUDGETS["all"], "disk", dtype) == digests(folder, BUDGETS[budget], tier, dtype)


def test_rows_computed_again_keep_the_decisions_of_capacity(folder: Path, library: Any) -> None:
    assert error_of_recomputed(folder, library) <= TOLERANCE


# Mutants


def seen_in_a_batch(folder: Path, library: Any) -> bool:
    watched, driver = run(folder, 8, 8)
    return watched.worst_error(library, driver) > SEEN


def test_mutant_without_capacity_is_caught(folder: Path, library: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        NllbBlock, "_within_capacity", lambda self, index, probabilities: torch.ones_like(index, dtype=torch.bool)
    )
    assert seen_in_a_batch(folder, library)


def test_mutant_padding_that_uses_up_capacity_is_caught(
    folder: Path, library: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nllb, "real_tokens", lambda experts: None)
    assert seen_in_a_batch(folder, library)


def test_mutant_second_choices_that_do_not_queue_behind_first_ones_are_caught(
    folder: Path, library: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = nllb._ranks
    monkeypatch.setattr(nllb, "_ranks", lambda choices, *rest: honest(choices * torch.tensor([[0], [1]]), *rest))
    assert seen_in_a_batch(folder, library)


def test_mutant_without_the_scale_of_token_dropout_is_caught(
    folder: Path, library: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(NllbExperts, "run_expert", _unscaled)
    assert seen_in_a_batch(folder, library)


def _unscaled(self: Any, weights: dict[str, torch.Tensor], rows: torch.Tensor) -> torch.Tensor:
    inner = torch.relu(rows @ weights["fc1.weight"].T + weights["fc1.bias"])
    return inner @ weights["fc2.weight"].T + weights["fc2.bias"]


def test_mutant_positions_that_count_padding_are_caught(
    folder: Path, library: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library's own way."""
    monkeypatch.setattr(nllb._PositionsByMask, "_position_ids", lambda self, *given: self._library(*given))
    assert seen_in_a_batch(folder, library)


def test_mutant_capacity_in_the_decoder_is_caught(folder: Path, library: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nllb, "DECODER", "nothing")
    assert error_of_recomputed(folder, library) > SEEN


# All processes


def test_outputs_begin_with_the_language_and_are_those_of_generate(folder: Path, library: Any) -> None:
    prompts, survey = random_prompts(4, VOCABULARY), surveyed(folder)
    sampling = Sampling(first_token=LANGUAGE + 1)
    with LocalRuntime(survey, BUDGETS["quarter"], RowAbilities.of(survey.rows)) as runtime:
        rows = [RequestRow(number, prompt, 0, sampling) for number, prompt in enumerate(prompts)]
        steps = [runtime.run(RunStep(number=n, unit=0, admit=[] if n else rows))[0] for n in range(OUTPUT)]
    for prompt, *tokens in zip(prompts, *(step.tokens for step in steps), strict=True):
        assert tokens == generated(library, prompt, LANGUAGE + 1)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_the_language_is_that_of_the_request_or_of_the_settings(folder: Path, library: Any) -> None:
    prompts = random_prompts(4, VOCABULARY)
    with Supervisor(Config.load(model=folder, expert_memory="25%")) as engine, Client(engine.address) as client:
        batches = {
            LANGUAGE: client.submit(prompts, max_new_tokens=OUTPUT, eos_ids=[]),
            LANGUAGE + 1: client.submit(prompts, max_new_tokens=OUTPUT, eos_ids=[], first_token=LANGUAGE + 1),
        }
        done = {language: batch.results() for language, batch in batches.items()}
    for language, results in done.items():
        for prompt, each in zip(prompts, results, strict=True):
            assert list(each.token_ids) == generated(library, prompt, language)


def generated(library: Any, prompt: list[int], language: int) -> list[int]:
    ids = torch.tensor([prompt])
    options = {"num_beams": 1, "do_sample": False, "max_new_tokens": OUTPUT, "min_new_tokens": 0, "eos_token_id": None}
    out = library.generate(ids, attention_mask=torch.ones_like(ids), forced_bos_token_id=language, **options)
    return out[0, 1:].tolist()


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("stage", ["", "compute"])
def test_the_pipeline_gives_the_tokens_of_the_mended_library(folder: Path, library: Any, stage: str) -> None:
    """Also when compute dies in the midst of it."""
    expect_tokens_of_the_library(folder, library, kill=stage, forced=1)

"""I1a and I1b over families × tiers × budgets × predictors × batch sizes × types, in one process.

A pairwise cover by default; the whole product under the marker `slow`. The parts are those of the real processes.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
from expertflow.configs.schema import Config
from expertflow.runtime.verify.local_runtime import LocalRuntime
from expertflow.tests.models.families import FAMILIES, save_tiny
from expertflow.tests.predictor.paths import random_path
from expertflow.tests.system.schedules import Digests, Driver, drive
from expertflow.workers.checkpoint.survey import Survey
from expertflow.workers.loader.transfer.link import EmulatedLink
from expertflow.workers.model.unit import RowAbilities
from expertflow.workers.predictor.base.forecaster import Forecaster
from expertflow.workers.predictor.base.model_shape import ModelShape
from expertflow.workers.predictor.registry import make_forecaster
from expertflow.workers.surveyor.surveyor import survey_checkpoint
from transformers import AutoModelForCausalLM

BUDGETS = ("one", "few", "quarter", "all")
PREDICTORS = ("none", "table", "path", "previous", "matrices", "everything", "noise", "opposite")
BATCHES = (1, 3, 8, 16)
TIERS = ("disk", "host", "dma")
"""dma: tier host over a link that copies nothing."""
LINK_RATE = 10**10
DTYPES = ("float32", "bfloat16")
AXES = (FAMILIES, BUDGETS, PREDICTORS, BATCHES, TIERS, DTYPES)
Case = tuple[str, str, str, int, str, str]


def pairwise() -> Iterator[Case]:
    """A small set of cases in which every two values of two axes meet.

    Greedy: a pair that is still open, with those other values that close most other pairs. Pairs of long axes go first.
    """
    places = list(itertools.combinations(range(len(AXES)), 2))
    places.sort(key=lambda pair: -len(AXES[pair[0]]) * len(AXES[pair[1]]))
    every = ((a, x, b, y) for a, b in places for x in AXES[a] for y in AXES[b])
    open_pairs: dict[tuple[int, object, int, object], None] = dict.fromkeys(every)
    while open_pairs:
        a, x, b, y = next(iter(open_pairs))
        axes = [(x,) if place == a else (y,) if place == b else axis for place, axis in enumerate(AXES)]
        best = max(itertools.product(*axes), key=lambda case: len(open_pairs.keys() & _pairs(case)))
        for pair in _pairs(best):
            open_pairs.pop(pair, None)
        yield best  # pyright: ignore[reportReturnType]


def _pairs(case: tuple[object, ...]) -> set[tuple[int, object, int, object]]:
    return {(a, case[a], b, case[b]) for a, b in itertools.combinations(range(len(case)), 2)}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("families")
    for number, family in enumerate(FAMILIES):
        save_tiny(family, folder / family, seed=number, max_shard_size="40KB" if number % 2 else "50GB")
    return folder


@cache
def _surveyed(folder: Path, dtype: str) -> tuple[Survey, RowAbilities]:
    survey = survey_checkpoint(str(folder), dtype=dtype)
    return survey, RowAbilities.of(survey.rows)


def _slots(budget: str, survey: Survey) -> int:
    count = survey.expert_count
    return {"one": 1, "few": survey.top_k + 1, "quarter": count // 4, "all": count}[budget]


def _run(
    survey: Survey, abilities: RowAbilities, slots: int, predictor: str, batch: int, tier: str
) -> tuple[Driver, Digests]:
    forecaster = _forecaster(survey, predictor)
    digests = Digests()
    link = EmulatedLink(LINK_RATE, time.monotonic_ns, time.sleep) if tier == "dma" else None
    tier = "host" if link else tier
    with LocalRuntime(survey, slots, abilities, digests.choose, forecaster, tier=tier, link=link) as runtime:
        driver = Driver(runtime, survey.vocabulary)
        drive(driver, batch, seed=batch)
    return driver, digests


def _forecaster(survey: Survey, predictor: str) -> Forecaster | None:
    """The path predictor is one that nobody trained: what it says hardly matters here."""
    if predictor == "path":
        return random_path(survey.layers, survey.experts, survey.top_k)
    config = Config(predictor=predictor)  # pyright: ignore[reportArgumentType]
    return make_forecaster(config, ModelShape.of(survey))


@cache
def _resident(folder: Path, dtype: str, batch: int) -> list[bytes]:
    survey, abilities = _surveyed(folder, dtype)
    return _run(survey, abilities, survey.expert_count, "none", batch, "disk")[1].seen


def _check_bits(checkpoints: Path, case: Case) -> None:
    family, budget, predictor, batch, tier, dtype = case
    survey, abilities = _surveyed(checkpoints / family, dtype)
    _, digests = _run(survey, abilities, _slots(budget, survey), predictor, batch, tier)
    assert digests.seen == _resident(checkpoints / family, dtype, batch)


@pytest.mark.parametrize("case", list(pairwise()), ids=lambda case: "-".join(map(str, case)))
def test_logits_are_bit_identical_to_resident(checkpoints: Path, case: Case) -> None:
    """I1a: budget, predictor, tier and order of arrival change no bit of any logit."""
    _check_bits(checkpoints, case)


@pytest.mark.slow
@pytest.mark.parametrize("case", list(itertools.product(*AXES)), ids=lambda case: "-".join(map(str, case)))
def test_logits_are_bit_identical_to_resident_whole_product(checkpoints: Path, case: Case) -> None:
    _check_bits(checkpoints, case)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("batch", [1, 6])
def test_tokens_equal_transformers_alone_and_unpadded(checkpoints: Path, family: str, batch: int) -> None:
    """I1b at a quarter of the experts with rows that join and leave: greedy tokens, teacher-forced, no tie excused."""
    survey, abilities = _surveyed(checkpoints / family, "float32")
    driver, _ = _run(survey, abilities, _slots("quarter", survey), "table", batch, "disk")
    model = AutoModelForCausalLM.from_pretrained(checkpoints / family, dtype=torch.float32).eval()
    for sequence in driver.sequences.values():
        ids = torch.tensor([sequence.prompt_ids + sequence.token_ids])
        with torch.inference_mode():
            logits = model(ids).logits[0, len(sequence.prompt_ids) - 1 : -1]
        assert sequence.token_ids == logits.argmax(-1).tolist()

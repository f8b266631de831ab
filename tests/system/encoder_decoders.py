"""Tiny models with an encoder run over slots, against the library on each prompt alone."""

from __future__ import annotations

from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from expertflow import Client, Config, Supervisor
from expertflow.ipc.messages import PredictStep, RequestRow, RunStep, Sampling, Stepped, StepRouting
from expertflow.runtime.verify.local_runtime import LocalRuntime
from expertflow.tests.models.switch import VOCABULARY, stepwise
from expertflow.tests.system.references import random_prompts
from expertflow.tests.system.schedules import Digests, Driver, drive
from expertflow.workers.checkpoint.survey import Survey
from expertflow.workers.compute.executor import sample
from expertflow.workers.model.unit import RowAbilities
from expertflow.workers.surveyor.surveyor import survey_checkpoint

TOLERANCE = 1e-4
SEEN = 50 * TOLERANCE
BUDGETS = {"one": 1, "few": 3, "quarter": 8, "all": 32}


@cache
def surveyed(folder: Path, dtype: str = "float32") -> Survey:
    return survey_checkpoint(str(folder), dtype=dtype)


class Watched:
    """A chooser that keeps all logits it sees, by row and output index."""

    def __init__(self) -> None:
        self.seen: dict[tuple[int, int], torch.Tensor] = {}

    def choose(self, step, unit, logits):  # noqa: ANN001, ANN201 - the signature of Chooser
        for number, index, each in zip(unit.numbers, unit.output_indices, logits, strict=True):
            self.seen[number, index] = each.clone()
        return sample(step, unit, logits)

    def worst_error(self, library: Any, driver: Driver) -> float:
        """Against the library on each prompt alone, step by step: a share of the largest logit."""
        worst = 0.0
        for number, sequence in driver.sequences.items():
            alone = stepwise(library, sequence.prompt_ids, sequence.token_ids)
            mine = [(index, logits) for (row, index), logits in self.seen.items() if row == number]
            errors = [float((alone[index] - logits).abs().max() / alone.abs().max()) for index, logits in mine]
            worst = max([worst, *errors])
        return worst


class Unrescued:
    """A runtime in which a step that had to be computed row by row is an error: nothing but the first try counts."""

    def __init__(self, runtime: LocalRuntime) -> None:
        self.runtime, self.order = runtime, runtime.order

    def run(self, step: RunStep, coming: PredictStep) -> tuple[Stepped, StepRouting | None]:
        stepped, used = self.runtime.run(step, coming)
        assert used is not None
        return stepped, used


def run(folder: Path, slots: int, batch: int, tier: str = "disk") -> tuple[Watched, Driver]:
    survey, watched = surveyed(folder), Watched()
    with LocalRuntime(survey, slots, RowAbilities.of(survey.rows), watched.choose, tier=tier) as runtime:
        driver = Driver(Unrescued(runtime), survey.vocabulary)  # pyright: ignore[reportArgumentType]
        drive(driver, batch, seed=batch)
    return watched, driver


def recomputed(folder: Path, prompts: list[list[int]], following: list[list[int]]) -> torch.Tensor:
    """Logits [rows, vocabulary] after rows that come back with what they generated."""
    survey, watched = surveyed(folder), Watched()
    rows = [RequestRow(i, a + b, len(b), Sampling()) for i, (a, b) in enumerate(zip(prompts, following, strict=True))]
    with LocalRuntime(survey, 8, RowAbilities.of(survey.rows), watched.choose) as runtime:
        runtime.run(RunStep(number=0, unit=0, admit=rows))
    return torch.stack([watched.seen[i, len(each)] for i, each in enumerate(following)])


def lost_to_a_death() -> tuple[list[list[int]], list[list[int]]]:
    return random_prompts(3, VOCABULARY, seed=5), random_prompts(3, VOCABULARY, seed=6)


def error_of_recomputed(folder: Path, library: Any) -> float:
    prompts, following = lost_to_a_death()
    mine = recomputed(folder, prompts, following)
    errors = []
    for each, prompt, after in zip(mine, prompts, following, strict=True):
        alone = stepwise(library, prompt, after)[-1]
        errors.append(float((each - alone).abs().max() / alone.abs().max()))
    return max(errors)


def expect_logits_of_the_library(folder: Path, library: Any, batch: int) -> None:
    """Every logit and every token, at a quarter of the experts."""
    watched, driver = run(folder, BUDGETS["quarter"], batch)
    assert watched.worst_error(library, driver) <= TOLERANCE
    for sequence in driver.sequences.values():
        alone = stepwise(library, sequence.prompt_ids, sequence.token_ids)[:-1]
        assert sequence.token_ids == alone.argmax(-1).tolist()


def expect_tokens_of_the_library(folder: Path, library: Any, kill: str = "", forced: int = 0) -> None:
    """But for the first `forced` tokens of each output, which are not the model's choice."""
    prompts, count = random_prompts(6, VOCABULARY), 100 if kill else 12
    config = Config.load(model=folder, expert_memory="25%", batch_size=4)
    with Supervisor(config) as engine, Client(engine.address) as client:
        batch = client.submit(prompts, max_new_tokens=count, eos_ids=[])
        if kill:
            list(islice(batch, 20))  # tokens: all are in the midst of it
            engine.kill(kill)
        done = batch.results(timeout_s=100)
    for prompt, each in zip(prompts, done, strict=True):
        chosen = stepwise(library, prompt, list(each.token_ids))[:-1].argmax(-1).tolist()
        assert list(each.token_ids)[forced:] == chosen[forced:]


def digests(folder: Path, slots: int, tier: str, dtype: str) -> Any:
    """Of all logits of one schedule."""
    survey, seen = surveyed(folder, dtype), Digests()
    with LocalRuntime(survey, slots, RowAbilities.of(survey.rows), seen.choose, tier=tier) as runtime:
        drive(Driver(runtime, survey.vocabulary), 6, seed=3)
    return seen.seen

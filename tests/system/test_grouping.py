"""Rows that change units while they decode: results and bits stay, whatever the cache layers of the model are."""

from __future__ import annotations

from pathlib import Path

import pytest
from expertflow import Client, Config, Supervisor
from expertflow.runtime.verify.local_runtime import LocalRuntime
from expertflow.tests.models.families import FAMILIES, VOCABULARY, save_tiny
from expertflow.tests.system.references import Reference, random_prompts
from expertflow.tests.system.scheduled import Scheduled, run_again
from expertflow.tests.system.schedules import Digests
from expertflow.workers.model.unit import RowAbilities
from expertflow.workers.predictor.base.token_table import TokenTable
from expertflow.workers.scheduler.limits import SchedulerLimits
from expertflow.workers.surveyor.surveyor import survey_checkpoint

UNITS = ("two", "three", "four")
COUNTS = [12, 30, 21, 30, 9, 30, 30, 17, 30, 25, 30, 6]
DEFAULT = {"qwen3_moe", "qwen3_next", "gpt_oss", "deepseek_v3"}
"""One family of each kind of cache: full attention, linear attention, sliding windows, latent attention."""
CASES = [
    pytest.param(number, family, marks=[] if family in DEFAULT else [pytest.mark.slow])
    for number, family in enumerate(FAMILIES)
]


@pytest.mark.parametrize(("number", "family"), CASES)
def test_regrouped_rows_get_the_tokens_and_bits_they_would_get(number: int, family: str, tmp_path: Path) -> None:
    """I1a and I1b with prompts of many lengths, rows that come and go, and exchanges in most rounds: the logits of all
    steps have the bits of the same steps with every expert resident, and the tokens are those of transformers."""
    save_tiny(family, tmp_path)
    survey = survey_checkpoint(str(tmp_path))
    abilities, table = RowAbilities.of(survey.rows), TokenTable(survey.layers, survey.experts, survey.top_k)
    limits = SchedulerLimits(
        batch_size=9, prefill_tokens=100, queue_limit=100, kv_bytes=2**30, units=UNITS[number % 3],
        grouping=("swap", "kmeans")[number % 2], gather_ns=0,
    )  # fmt: skip
    prompts, ours, resident = random_prompts(12, VOCABULARY), Digests(), Digests()
    with LocalRuntime(survey, survey.expert_count // 4, abilities, ours.choose) as runtime:
        engine = Scheduled.of(runtime, table, survey, limits)
        outputs = engine.run(prompts, COUNTS)
    assert engine.core.statistics().regroupings >= 8 and engine.core.statistics().rows_moved >= 16
    with LocalRuntime(survey, survey.expert_count, abilities, resident.choose) as runtime:
        run_again(runtime, engine.orders)
    assert ours.seen == resident.seen
    reference = Reference(tmp_path)
    assert outputs == [reference.greedy(*each) for each in zip(prompts, COUNTS, strict=True)]


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_deaths_of_predictor_and_compute_while_rows_change_units(tmp_path: Path) -> None:
    """I4 through all processes: questions that nobody answers, units that are gone, and no token lost."""
    save_tiny("qwen3_moe", tmp_path)
    prompts = random_prompts(12, VOCABULARY)
    config = Config.load(model=tmp_path, expert_memory="25%", batch_size=8, units="two", grouping="swap")
    with Supervisor(config) as engine, Client(engine.address) as client:
        batch = client.submit(prompts, max_new_tokens=40, eos_ids=[])
        for stage, tokens in (("predictor", 60), ("compute", 100)):
            for event in batch:
                tokens -= len(event.token_ids)
                if tokens <= 0:
                    break
            engine.kill(stage)
        done = batch.results(timeout_s=120)
    reference = Reference(tmp_path)
    assert [list(each.token_ids) for each in done] == [reference.greedy(prompt, 40) for prompt in prompts]

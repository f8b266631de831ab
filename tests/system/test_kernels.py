"""Forced and measured kernels through whole models: the bits of resident at every budget, one table for an engine."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
from expertflow import Client, Config, Supervisor
from expertflow.runtime.verify.checks import Verification
from expertflow.runtime.verify.local_runtime import LocalRuntime
from expertflow.tests.kernels.forced import forced_or_skip
from expertflow.tests.models.families import VOCABULARY, save_tiny
from expertflow.tests.system.awaiting import await_tokens
from expertflow.tests.system.references import Reference, random_prompts
from expertflow.tests.system.schedules import Digests, Driver, drive
from expertflow.workers.checkpoint.survey import Survey
from expertflow.workers.kernels.making import TableMaker
from expertflow.workers.kernels.table import KERNELS, NATIVE
from expertflow.workers.model.unit import RowAbilities
from expertflow.workers.surveyor.surveyor import survey_folder

FAMILIES = ("qwen3_moe", "gpt_oss", "deepseek_v3", "llama4_text")
"""Plain, transposed with bias, with shared experts, and an adapter's."""


OTHERS = [pytest.param(kernel, marks=pytest.mark.slow) for kernel in KERNELS if kernel != NATIVE]
DTYPES = ("float32", "bfloat16")
CASES = [
    pytest.param(kernel, family, dtype, marks=() if (i + j + k) % 2 else pytest.mark.slow)
    for i, kernel in enumerate(KERNELS)
    for j, family in enumerate(FAMILIES)
    for k, dtype in enumerate(DTYPES)
]
"""Each kernel meets each family and each dtype; the other half of the product is slow."""


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("families")
    for family in FAMILIES:
        save_tiny(family, folder / family)
    return folder


@cache
def surveyed(folder: Path, dtype: str, kernel: str) -> Survey:
    return survey_folder(folder, dtype, make_table=TableMaker(kernel, lambda progress: None).make)


def digests_of(survey: Survey, slots: int, batch: int) -> list[bytes]:
    digests = Digests()
    abilities = RowAbilities.of(survey.rows)
    with LocalRuntime(survey, slots, abilities, digests.choose) as runtime:
        drive(Driver(runtime, survey.vocabulary), batch, seed=batch)
    return digests.seen


@pytest.mark.parametrize(("kernel", "family", "dtype"), CASES)
def test_a_forced_kernel_gives_the_bits_of_resident(
    checkpoints: Path, family: str, kernel: str, dtype: str, one_thread: None
) -> None:
    """I1a at one slot, which computes every expert alone, and at few, which computes some together."""
    forced_or_skip(kernel)
    survey = surveyed(checkpoints / family, dtype, kernel)
    resident = digests_of(survey, survey.expert_count, 6)
    assert resident
    for slots in (1, survey.top_k + 1, survey.expert_count // 2):
        assert digests_of(survey, slots, 6) == resident


@pytest.mark.timeout(240)
@pytest.mark.parametrize("kernel", [NATIVE, *OTHERS])
def test_an_engine_with_a_forced_kernel_is_verified(kernel: str, checkpoints: Path, tmp_path: Path) -> None:
    """I1a, I1b: the recording brings its table, so the replay uses the same kernels."""
    forced_or_skip(kernel)
    model, record = checkpoints / "qwen3_moe", tmp_path / "record"
    prompts = random_prompts(5, VOCABULARY)
    options = {"expert_memory": "25%", "batch_size": 4, "kernels": kernel, "record": str(record), "dtype": "bfloat16"}
    with Supervisor(Config.load(model=model, **options)) as engine, Client(engine.address) as client:
        client.generate(prompts, max_new_tokens=8, eos_ids=[])
        assert engine.snapshot().facts["compute"]["kernels"] == "forced"
    verification = Verification(record, str(model), dtype="bfloat16")
    assert verification._survey.kernels.origin == "forced"
    check = verification.resident()
    assert check.holds, check.detail
    bfloat16 = verification.bfloat16()
    assert bfloat16.holds, bfloat16.detail


@pytest.fixture
def wide_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a model with weights that are large enough to be timed, and a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "model"
    save_tiny("qwen3_moe", folder, vocab_size=6000)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_restarted_compute_measures_nothing_and_uses_the_same_table(wide_model: Path, tmp_path: Path) -> None:
    """Nor does a later start, unless the machine was too busy to keep the table."""
    record, reference = tmp_path / "record", Reference(wide_model)
    prompts = random_prompts(4, VOCABULARY)
    config = Config.load(model=wide_model, expert_memory="25%", record=str(record), restart_limit=50)
    told: list[str] = []
    with Supervisor(config, lambda progress: told.append(progress.stage)) as engine, Client(engine.address) as client:
        before = engine.snapshot().facts["compute"]
        steps_told = told.count("kernels")
        batch = client.submit(prompts, max_new_tokens=40, eos_ids=[])
        await_tokens(batch, 8)
        table = json.loads((record / "kernels.json").read_bytes())
        engine.kill("compute")
        done = batch.results(timeout_s=120)
        after = engine.snapshot().facts["compute"]
    assert before["kernels"] == after["kernels"] == "measured" and steps_told == told.count("kernels") > 10
    assert before["kernels_s"] == after["kernels_s"] and float(before["kernels_s"]) < 10, "K5"
    assert json.loads((record / "kernels.json").read_bytes()) == table and len(list(record.glob("steps.*"))) == 2
    assert list(table["choices"]) == ["linear float32 6000x48"]
    assert [list(each.token_ids) for each in done] == [reference.greedy(prompt, 40) for prompt in prompts]
    kept = list((tmp_path / "cache" / "expertflow").glob("kernels-*.json"))
    with Supervisor(config) as engine:
        again = engine.snapshot().facts["compute"]
    assert again["kernels"] == ("cache" if kept else "measured")
    assert not kept or float(again["kernels_s"]) < 0.1, "K5"

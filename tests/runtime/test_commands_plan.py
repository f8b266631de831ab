"""`expertflow plan`: numbers from headers alone, also for a model that no memory would hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from expertflow.configs.schema import Config
from expertflow.errors import BudgetError, UsageError
from expertflow.runtime.commands import plan
from expertflow.runtime.commands.plan import Plan
from expertflow.runtime.plan import fit, proposal
from expertflow.tests.runtime.fake_survey import fake_survey
from expertflow.workers.checkpoint.survey import Survey
from expertflow.workers.predictor.base.token_table import TABLE_BYTES
from expertflow.workers.predictor.memory import COPIES_OF_FILE, PAPER_CACHE_BYTES, WITH_TORCH_BYTES
from expertflow.workers.predictor.path.history import MEMORY_BYTES
from msgspec import structs

GIB = 2**30


def budgets(survey: Survey, available_bytes: int = 100 * GIB, **options: object) -> fit.Fit:
    return fit.budget_fit(survey, Config.load(**{"model": "m", "kv_memory": "1GiB", **options}), available_bytes)


def test_the_sum_is_of_all_parts() -> None:
    """A part left out would be missed when the machine swaps."""
    survey = fake_survey(layers=4, experts=10, stride_bytes=GIB, skeleton_bytes=2 * GIB)
    found = budgets(survey, expert_memory="50%", predictor="none")
    assert (found.slots, found.slots_bytes, found.slots_share) == (20, 20 * GIB, 0.5)
    assert found.process_bytes == 450 * 10**6 + 4 * 80 * 10**6
    assert found.total_bytes == 20 * GIB + 1 * GIB + 2 * GIB + found.process_bytes
    assert found.fits
    assert found.smallest_bytes == found.total_bytes - 19 * GIB
    assert found.largest_slots == 40


@pytest.mark.parametrize(
    ("options", "more"),
    [
        ({}, TABLE_BYTES),
        ({"predictor": "path", "predictor_file": "FILE"}, MEMORY_BYTES + COPIES_OF_FILE * 1000),
        ({"predictor_file": "FILE"}, MEMORY_BYTES + COPIES_OF_FILE * 1000),
        ({"predictor": "paper", "predictor_file": "missing"}, WITH_TORCH_BYTES + PAPER_CACHE_BYTES),
        ({"predictor": "matrices"}, 256 * 4 * 8 * 4),
        ({"predictor": "none", "spare_compute": True}, 450 * 10**6),
    ],
)
def test_processes_count_as_they_are_once_histories_are_full(
    options: dict[str, Any], more: int, tmp_path: Path
) -> None:
    """The predictor grew from 42 to 135 MB in the first thousand requests, and nobody had counted that."""
    (tmp_path / "predictor").write_bytes(bytes(1000))
    named: dict[str, Any] = {
        name: str(tmp_path / "predictor") if value == "FILE" else value for name, value in options.items()
    }
    bare = budgets(fake_survey(), predictor="none").process_bytes
    assert budgets(fake_survey(), **named).process_bytes == bare + more


def test_an_encoder_has_a_table_of_its_own() -> None:
    survey = structs.replace(fake_survey(), encoder_layers=2)
    bare = budgets(survey, predictor="none").process_bytes
    assert budgets(survey).process_bytes == bare + 2 * TABLE_BYTES


def test_a_host_store_counts() -> None:
    survey = fake_survey(layers=4, experts=10, stride_bytes=GIB)
    assert budgets(survey, tier="host").host_bytes == 40 * GIB
    assert budgets(survey, tier="disk").host_bytes == 0


def test_what_would_fit_is_said() -> None:
    """The advised size must fit, and one slot more must not."""
    survey = fake_survey(layers=10, experts=100, stride_bytes=GIB)
    found = budgets(survey, available_bytes=20 * GIB, expert_memory="50%")
    assert not found.fits
    advised = budgets(survey, available_bytes=20 * GIB, expert_memory=f"{found.largest_slots_bytes}B")
    more = budgets(survey, available_bytes=20 * GIB, expert_memory=f"{found.largest_slots_bytes + GIB}B")
    assert advised.fits and not more.fits
    words = plan.verdict(fit.model_needs(survey), found)
    option = words.partition("--expert-memory ")[2].split()[0]
    assert "does not fit" in words
    assert budgets(survey, available_bytes=20 * GIB, expert_memory=option).slots == found.largest_slots


def test_not_even_one_slot() -> None:
    found = budgets(fake_survey(stride_bytes=GIB), available_bytes=GIB)
    assert (found.fits, found.largest_slots) == (False, 0)
    assert "--expert-memory" not in plan.verdict(fit.model_needs(fake_survey(stride_bytes=GIB)), found)


def test_a_share_of_memory_for_kv_is_of_what_is_available() -> None:
    config = Config.load(model="m", kv_memory="10%")
    assert fit.budget_fit(fake_survey(), config, 1000 * GIB).kv_bytes == 100 * GIB


def test_below_one_expert_is_wrong_input() -> None:
    with pytest.raises(BudgetError, match="holds no expert"):
        budgets(fake_survey(stride_bytes=GIB), expert_memory="1KB")


@pytest.mark.parametrize(("stride_bytes", "code"), [(4096, 0), (10**15, 1)])
def test_exit_code_and_json(
    stride_bytes: int, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A script asks whether it fits; petabytes must be answered as fast as kilobytes."""
    survey = fake_survey(stride_bytes=stride_bytes)
    monkeypatch.setattr(proposal, "run_sizes", lambda config, path: survey)
    engine = Config.load(model="m", kv_memory="1MB")
    assert Plan(engine=engine, memory_only=True, json=True).run() == code
    answer = json.loads(capsys.readouterr().out)
    assert answer["budgets"]["fits"] is (code == 0)
    assert answer["model"]["slot_bytes"] == stride_bytes
    assert Plan(engine=engine, memory_only=True).run() == code
    table = capsys.readouterr().out
    assert ("It fits." if code == 0 else "It does not fit") in table
    assert "one expert" in table and "processes" in table


def test_a_model_that_is_a_file_is_refused_by_the_real_surveyor(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.touch()
    with pytest.raises(UsageError, match="file"):
        Plan(engine=Config.load(model=str(file))).run()

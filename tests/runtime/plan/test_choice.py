"""The memory that is chosen where none is configured: never more than fits, all where all fits, none for a device."""

from __future__ import annotations

import pytest
from expertflow.configs.schema import AUTO, Config
from expertflow.errors import BudgetError
from expertflow.runtime.command_line.base import EngineCommand
from expertflow.runtime.command_line.registry import parse
from expertflow.runtime.engine.budgets import MARGIN, choose_memory, plan_budgets, settle_memory
from expertflow.tests.runtime.fake_survey import fake_survey
from expertflow.workers.checkpoint.survey import Survey
from hypothesis import given
from hypothesis import strategies as st

GB = 10**9
CONFIG = Config(model="m", expert_memory=AUTO)


def survey(stride_bytes: int = GB, skeleton_bytes: int = GB) -> Survey:
    return fake_survey(layers=4, experts=8, stride_bytes=stride_bytes, skeleton_bytes=skeleton_bytes)


@given(
    st.integers(10**5, 4 * GB), st.integers(0, 20 * GB), st.integers(0, 200 * GB), st.integers(0, GB), st.integers(1, 9)
)
def test_what_is_chosen_fits_with_a_margin(stride: int, skeleton: int, free: int, process: int, kv_gb: int) -> None:
    sizes, config = survey(stride, skeleton), Config(model="m", expert_memory=AUTO, kv_memory=f"{kv_gb}GB")
    try:
        settled, reason = settle_memory(config, sizes, free, process)
    except BudgetError:
        assert stride + skeleton + process + kv_gb * GB > free * (1 - MARGIN) - 1
        return
    budgets = plan_budgets(settled, sizes, free)
    assert budgets.total_bytes + process <= free * (1 - MARGIN) + 1 and reason
    if budgets.slots < sizes.expert_count:
        assert budgets.total_bytes + process + stride > free * (1 - MARGIN) - 1, "one more slot would fit"


def test_all_is_chosen_where_all_fits_and_the_reason_has_the_numbers() -> None:
    choice = choose_memory(CONFIG, survey(), 100 * GB, 0)
    assert (choice.slots, choice.expert_memory) == (32, "100%") and "all 32 experts" in choice.reason
    part = choose_memory(CONFIG, survey(), 20 * GB, 0)
    assert part.slots == 16 and "16 of 32 experts (50 %)" in part.reason and "20.00 GB" in part.reason


def test_where_not_even_one_slot_fits_it_is_said_with_the_numbers() -> None:
    with pytest.raises(BudgetError, match=r"takes 2\.54 GB"):
        choose_memory(CONFIG, survey(), 2 * GB, 0)


@pytest.mark.parametrize("options", [{"device": "cuda"}, {"tier": "host"}])
def test_a_device_and_a_host_store_keep_the_share_they_had(options: dict[str, str]) -> None:
    config = Config.load(model="m", expert_memory=AUTO, **options)
    settled, reason = settle_memory(config, survey(), 100 * GB, 0)
    assert (settled.expert_memory, reason) == ("25%", "")


def test_a_configured_size_is_not_touched() -> None:
    config = Config(model="m", expert_memory="3GB")
    assert settle_memory(config, survey(), 100 * GB, 0) == (config, "")


@pytest.mark.parametrize(
    ("words", "memory"),
    [
        (["serve"], AUTO),
        (["generate"], AUTO),
        (["plan"], AUTO),
        (["serve", "--expert-memory", "25%"], "25%"),
        (["generate", "--preset", "on-demand"], "25%"),
        (["verify"], "25%"),
        (["trace", "folder"], "25%"),
    ],
)
def test_only_commands_that_run_a_model_choose_and_only_without_options(words: list[str], memory: str) -> None:
    command = parse([*words, "--model", "m"])
    assert isinstance(command, EngineCommand) and command.engine.expert_memory == memory

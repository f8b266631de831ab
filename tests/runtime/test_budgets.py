"""Sizes to slots, and refusals with the numbers (I5)."""

from __future__ import annotations

import pytest
from expertflow.configs.schema import Config
from expertflow.errors import BudgetError
from expertflow.runtime.engine import budgets
from expertflow.runtime.engine.budgets import count_slots, packing_choice, plan_budgets
from expertflow.tests.runtime.fake_survey import fake_survey
from expertflow.workers.packed.choice import DEQUANTISED, ExpertsIn, PackingChoice
from expertflow.workers.packed.packing import FLOAT8, INT4, Packing

MIB = 2**20


@pytest.mark.parametrize(
    ("expert_memory", "slots"),
    [("25%", 25), ("29%", 29), ("100%", 100), ("1%", 1), ("4096", 1), ("12287", 2), ("1GB", 100)],
)
def test_slots_are_whole_experts_rounded_down_and_never_more_than_there_are(expert_memory: str, slots: int):
    """29 % of 100 is 28.999… in floating point: one slot would be lost."""
    assert count_slots(expert_memory, fake_survey(layers=10, experts=10)) == slots


@pytest.mark.parametrize("expert_memory", ["4095", "0", "0.9%"])
def test_less_than_one_expert_is_refused(expert_memory: str):
    with pytest.raises(BudgetError, match="one of the 100 takes 4.1 kB"):
        count_slots(expert_memory, fake_survey(layers=10, experts=10))


def test_the_host_store_holds_every_expert_or_is_refused():
    survey = fake_survey(layers=2, experts=4)
    budgets = plan_budgets(Config.load("cpu-host", model="m"), survey, 10**12)
    assert (budgets.host_bytes, budgets.slots) == (8 * 4096, 2)
    with pytest.raises(BudgetError, match="all 8 experts take 32.8 kB"):
        plan_budgets(Config.load("cpu-host", model="m", host_memory="99%"), survey, 10**12)
    assert plan_budgets(Config.load(model="m", host_memory="1%"), survey, 10**12).host_bytes == 0


def test_a_host_store_before_a_device_has_whole_places_and_counts_alone():
    """Slots, caches and skeleton are the device's, whose memory compute looks at."""
    survey = fake_survey(layers=2, experts=4, skeleton_bytes=10**9)
    config = Config.load(model="m", device="fake:0", host_memory="70%", expert_memory="50%")
    budgets = plan_budgets(config, survey, 5 * 4096)
    assert (budgets.slots, budgets.host_bytes, budgets.total_bytes) == (4, 5 * 4096, 5 * 4096)
    with pytest.raises(BudgetError, match=r"needs 20.5 kB \(host store 20.5 kB\)"):
        plan_budgets(config, survey, 5 * 4096 - 1)
    with pytest.raises(BudgetError, match="holds no expert"):
        plan_budgets(Config.load(model="m", device="fake:0", host_memory="4095B"), survey, 10**12)


def test_all_budgets_together_must_fit():
    """Each alone would fit: slots 4 MiB, KV 8 MiB, the rest 16 MiB."""
    survey = fake_survey(layers=1, experts=4, stride_bytes=MIB, skeleton_bytes=16 * MIB)
    config = Config.load(model="m", expert_memory="100%", kv_memory="8MiB")
    assert plan_budgets(config, survey, 28 * MIB).total_bytes == 28 * MIB
    with pytest.raises(BudgetError, match=r"needs 29.4 MB \(expert slots 4.2 MB, KV caches 8.4 MB, the rest"):
        plan_budgets(config, survey, 28 * MIB - 1)


def test_slots_of_their_own_need_one_a_layer():
    """Fewer slots than layers would leave a layer without any."""
    survey = fake_survey(layers=4, experts=4)
    few = f"{3 * survey.stride_bytes}B"
    assert plan_budgets(Config.load(model="m", expert_memory=few), survey, 10**12).slots == 3
    with pytest.raises(BudgetError, match="slots of its own"):
        plan_budgets(Config.load(model="m", expert_memory=few, slot_sharing="layer"), survey, 10**12)


@pytest.mark.parametrize("variants", [["amx_dots", "avx2"], ["avx2"], []])
@pytest.mark.parametrize("experts_in", ["auto", "packed", "dequantised"])
def test_the_form_of_experts_follows_the_machine_and_never_a_budget(
    experts_in: ExpertsIn, variants: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """I1a: each form may have kernels of its own, and so bits of its own."""
    monkeypatch.setattr(budgets, "usable_variants", lambda: dict.fromkeys(variants, 0))
    named = {"model": "m", "experts_in": experts_in}
    chosen = [packing_choice(Config.load(expert_memory=size, **named)) for size in ("100%", "25%", "1GB", "auto")]
    automatic = "auto" if "amx_dots" in variants else "dequantised"
    assert chosen == [PackingChoice(automatic if experts_in == "auto" else experts_in)] * 4
    on_device = packing_choice(Config.load(device="fake:1", **named))
    assert on_device == (DEQUANTISED if experts_in == "auto" else PackingChoice(experts_in))


@pytest.mark.parametrize(
    ("form", "dtype", "packs"), [(INT4, "bfloat16", True), (INT4, "float32", False), (FLOAT8, "bfloat16", False)]
)
def test_auto_packs_what_is_multiplied_without_unpacking(form: str, dtype: str, packs: bool) -> None:
    packing = Packing(parameter="p", format=form, rows=4, columns=64, codes="c")
    assert PackingChoice("auto").packs([packing], dtype) == packs and not PackingChoice("auto").packs([], dtype)
    assert PackingChoice("packed").packs([packing], dtype) and not DEQUANTISED.packs([packing], dtype)

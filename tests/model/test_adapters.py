"""The adapters of families outside transformers' experts interface: what they change, and what they must not."""

from __future__ import annotations

import pytest
import torch
from expertflow.tests.model.replay import TOLERANCE, Replay, a_life, prompts
from expertflow.tests.models.families import FAMILIES, tiny_config, tiny_model
from expertflow.tests.models.outside import OUTSIDE
from expertflow.workers.compute.experts.layer import weighs_input
from expertflow.workers.model.architecture import build_on_meta, experts_modules
from expertflow.workers.model.families.llama4 import temper_by_position
from expertflow.workers.model.families.registry import adapt


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in OUTSIDE])
def test_families_inside_the_interface_stay_as_they_are(family: str) -> None:
    model = tiny_model(family)
    before = [type(module) for module in model.modules()]
    adapt(model)
    assert [type(module) for module in model.modules()] == before


@pytest.mark.parametrize("family", OUTSIDE)
def test_adapting_twice_is_adapting_once(family: str) -> None:
    """A subclass of the subclass would be harmless today and a riddle tomorrow."""
    model = build_on_meta(tiny_config(family), torch.float32)
    before = [type(module) for module in model.modules()]
    adapt(model)
    assert [type(module) for module in model.modules()] == before
    assert list(experts_modules(model))


@pytest.mark.parametrize("family", OUTSIDE)
def test_only_llama4_weighs_what_goes_in(family: str) -> None:
    (_, module), *_ = experts_modules(build_on_meta(tiny_config(family), torch.float32))
    assert weighs_input(module) == (family == "llama4_text")


def test_temperature_by_position_is_the_librarys_for_a_row_alone() -> None:
    """Bit for bit: the same scale on the same numbers, only its positions come from elsewhere."""
    ids = torch.randint(3, 128, (1, 21), generator=torch.Generator().manual_seed(0))
    own, library = tiny_model("llama4_text"), tiny_model("llama4_text")
    temper_by_position(own)
    with torch.inference_mode():
        assert torch.equal(own(ids).logits, library(ids).logits)


@torch.inference_mode()
def test_mutant_temperature_by_column_is_caught() -> None:
    """The library's own: in a padded unit it takes padding for tokens."""
    replay = Replay(tiny_model("llama4_text"), prompts(5))
    a_life(replay)
    assert replay.compare()[0] > 50 * TOLERANCE

"""Sizes and speed in 16, 8 and 4 bits, against what `expertflow quantize` writes."""

from __future__ import annotations

from pathlib import Path

import pytest
from expertflow.runtime.plan.by_bits import BITS, fits_by_bits, sizes_in
from expertflow.runtime.plan.forecast import Rates, Routing, forecast_step
from expertflow.runtime.plan.speed_words import bits_facts
from expertflow.workers.model.probing.tiny_sizes import VOCABULARY
from expertflow.workers.quantize.plan import Precision
from expertflow.workers.quantize.writing import quantise_checkpoint
from expertflow.workers.surveyor.surveyor import survey_checkpoint
from msgspec import structs
from transformers import OlmoeConfig, OlmoeForCausalLM

from .made import MB, made_sizes, made_table


def test_fewer_bits_take_less_and_are_never_slower() -> None:
    """With the bytes of a quarter of the experts in 16 bits."""
    sizes = made_sizes()
    fits = fits_by_bits(sizes, 256 * 3 * MB)
    assert [fit.bits for fit in fits] == list(BITS)
    assert [fit.expert_bytes for fit in fits] == [3_000_000, 1_593_750, 843_750]
    assert [fit.slots for fit in fits] == [256, 481, 910] and fits[2].slots_share == 910 / 1024
    rates = Rates(kernels=made_table(), read_bytes_per_s=1e9)
    steps = [forecast_step(sizes_in(sizes, fit), fit.slots, 8, rates, Routing()).step_s for fit in fits]
    assert steps == sorted(steps, reverse=True) and steps[0] > 2 * steps[2]


def test_a_model_that_is_quantised_already_has_no_table() -> None:
    sizes = structs.replace(made_sizes(), stored_expert_bytes=1 * MB)
    assert fits_by_bits(sizes, 100 * MB) == [] and bits_facts([]) == {}


@pytest.mark.parametrize("bits", [8, 4])
def test_sizes_are_those_of_the_file_that_quantize_writes(tmp_path: Path, bits: int) -> None:
    config = OlmoeConfig(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, num_experts=4, num_experts_per_tok=2,
    )  # fmt: skip
    OlmoeForCausalLM(config).bfloat16().save_pretrained(tmp_path / "model")
    fit = next(fit for fit in fits_by_bits(survey_checkpoint(str(tmp_path / "model")), 10**6) if fit.bits == bits)
    quantise_checkpoint(tmp_path / "model", tmp_path / "small", Precision(bits, 32), lambda *progress: None)
    small = survey_checkpoint(str(tmp_path / "small"), experts_in="packed")
    assert small.expert_bytes == fit.expert_bytes and small.experts_bytes == fit.experts_bytes
    assert f"experts in {bits} bits" in bits_facts([fit])

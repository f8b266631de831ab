"""Stalls of a kind of routing: steps are cut as units run, and a loader that knows the modality waits less."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from expertflow.examples.studies.routing.specialisation import RoutingTrace
from expertflow.examples.studies.routing.stalls import IMAGE, TEXT, UNIT_ROWS, UnitSteps, stall_facts

LAYERS, ROWS, TOKENS, EXPERTS = 2, 16, 14, 16
OF_IMAGES = torch.tensor([False, False, True, True, True, True, *[False] * 8])


def split_trace(top_k: int = 2) -> RoutingTrace:
    """Images use the first half of the experts, text two experts of the second half in every step."""
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randint(0, EXPERTS // 2, (LAYERS, ROWS, TOKENS, top_k), generator=generator)
    chosen[:, :, ~OF_IMAGES] = torch.tensor([EXPERTS // 2, EXPERTS - 1])
    return RoutingTrace(chosen, OF_IMAGES, EXPERTS)


def test_a_unit_reads_its_images_in_one_step_and_its_text_token_by_token() -> None:
    trace = split_trace()
    steps = UnitSteps.of(trace)
    texts = TOKENS - 2 - int(OF_IMAGES.sum())
    assert steps.program.steps == ROWS // UNIT_ROWS * (1 + texts) and steps.text_tokens == ROWS * texts
    assert steps.modality.tolist() == [IMAGE, *[TEXT] * texts] * (ROWS // UNIT_ROWS)
    for unit in range(ROWS // UNIT_ROWS):
        rows = trace.chosen[:, unit * UNIT_ROWS : (unit + 1) * UNIT_ROWS]
        first = unit * (1 + texts)
        for layer in range(LAYERS):
            images = np.unique(rows[layer][:, OF_IMAGES])
            assert list(steps.program.experts_of(first, layer)) == images.tolist()
            text = {EXPERTS // 2: UNIT_ROWS, EXPERTS - 1: UNIT_ROWS}
            assert steps.program.experts_of(first + 1, layer) == text


def test_a_loader_that_knows_the_modality_waits_less_and_routing_over_all_experts_waits_more() -> None:
    split = stall_facts(split_trace())
    assert set(split) == {"lru", "usage", "bins"}
    assert split["bins"]["stall_ms"] < split["lru"]["stall_ms"]
    even = torch.randint(0, EXPERTS, (LAYERS, ROWS, TOKENS, 2), generator=torch.Generator().manual_seed(1))
    spread = stall_facts(RoutingTrace(even, OF_IMAGES, EXPERTS))
    for loader, figures in spread.items():
        assert figures["stall_ms"] > split[loader]["stall_ms"] and figures["loads"] > split[loader]["loads"]


def test_a_dense_model_has_nothing_to_load() -> None:
    assert stall_facts(RoutingTrace(torch.zeros(1, 8, TOKENS, 1, dtype=torch.long), OF_IMAGES, 1)) == {}


@pytest.mark.parametrize("top_k", [1, 2])
def test_every_choice_of_an_image_or_of_text_is_in_a_step(top_k: int) -> None:
    trace = RoutingTrace(split_trace().chosen[..., :top_k], OF_IMAGES, EXPERTS)
    program = UnitSteps.of(trace).program
    counted = sum(sum(program.experts_of(step, 0).values()) for step in range(program.steps))
    assert counted == ROWS * (TOKENS - 2) * top_k

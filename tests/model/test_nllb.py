"""NLLB-MoE's routing as it was published: the mended library and our block, against a straight-line reference."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from expertflow.errors import CheckpointError
from expertflow.tests.models.nllb import save_nllb, straight_line, tiny_nllb
from expertflow.workers.model.families import nllb
from expertflow.workers.model.families.nllb import NllbExperts
from expertflow.workers.model.families.registry import adapt, correct_blocks
from expertflow.workers.surveyor.surveyor import survey_checkpoint

OPTIONS = [
    {"moe_eval_capacity_token_fraction": fraction, "normalize_router_prob_before_dropping": early} | ranked
    for fraction, early, ranked in itertools.product(
        (0.2, 1.0, -1.0), (False, True), ({}, {"batch_prioritized_routing": True})
    )
]
CAPACITY = 3


@pytest.fixture(autouse=True)
def resident(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours hand their tokens to a plain loop over all experts, not to slots."""
    monkeypatch.setattr(NllbExperts, "run_routed", run_resident)


def run_resident(self: NllbExperts, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    parameters, out = self.expert_parameters(), torch.zeros_like(hidden)
    for expert in range(self.num_experts):
        own = {name: tensor[expert] for name, tensor in parameters.items()}
        out += self.run_expert(own, hidden) * (weights * (index == expert)).sum(dim=1, keepdim=True)
    return out


def blocks(**options: Any) -> tuple[Any, Any]:
    """The same MoE block twice: mended, and ours."""
    pair = [tiny_nllb(encoder_layers=2, decoder_layers=2, expert_capacity=CAPACITY, **options) for _ in range(2)]
    correct_blocks(pair[0])
    adapt(pair[1])
    return tuple(model.model.encoder.layers[1].ffn for model in pair)  # pyright: ignore[reportReturnType]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@torch.no_grad()
def test_both_compute_what_was_published(options: dict[str, Any]) -> None:
    mended, ours = blocks(**options)
    mended.capacity = CAPACITY
    hidden = torch.randn(2, 17, 48, generator=torch.Generator().manual_seed(1))
    for row in hidden:
        expected = straight_line(mended, row)
        scale = float(expected.abs().max())
        for block in (mended, ours):
            assert float((block(row[None])[0] - expected).abs().max()) <= 1e-5 * scale, type(block).__mro__


@torch.no_grad()
def test_rows_share_no_capacity() -> None:
    """Unlike in the library, where the tokens of a batch are one queue."""
    _, ours = blocks()
    hidden = torch.randn(3, 17, 48, generator=torch.Generator().manual_seed(1))
    alone = torch.cat([ours(row[None]) for row in hidden])
    assert torch.allclose(ours(hidden), alone, atol=1e-5)


@pytest.mark.parametrize("flag", [False, True])
@torch.no_grad()
def test_padding_uses_up_no_capacity_whatever_the_flag_says(flag: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the library `router_ignore_padding_tokens` lets padding use up capacity, though its name says otherwise."""
    library, ours = blocks(moe_eval_capacity_token_fraction=-1.0, router_ignore_padding_tokens=flag)
    hidden = torch.randn(1, 1, 48, generator=torch.Generator().manual_seed(1)).repeat(1, 2 * CAPACITY, 1)
    real = torch.tensor([[False] * CAPACITY + [True] * CAPACITY])  # all want the same two experts
    logits = library.router.classifier(hidden[0])
    _, weights = library.router.route_tokens(logits, padding_mask=~real[0])
    assert bool(weights[CAPACITY:].any(dim=1).all()) is not flag
    alone = ours(hidden[:, CAPACITY:])
    monkeypatch.setattr(nllb, "real_tokens", lambda experts: real)
    assert torch.allclose(ours(hidden)[:, CAPACITY:], alone, atol=1e-6)
    assert bool(alone.any())


@torch.no_grad()
def test_the_library_still_takes_a_mask_for_numbers() -> None:
    """When transformers computes all experts rightly by itself, this fails, and `CorrectedNllbBlock` can go."""
    library: Any = tiny_nllb(encoder_layers=2, decoder_layers=2).model.encoder.layers[1].ffn
    mended, _ = blocks()
    hidden = torch.randn(1, 17, 48, generator=torch.Generator().manual_seed(1))
    before = library(hidden)
    for name, parameter in library.experts.named_parameters():
        if not name.startswith(("expert_0.", "expert_1.")):
            parameter.add_(1.0)
    assert torch.equal(library(hidden), before)
    assert not torch.allclose(before, mended(hidden), rtol=0.1)


def test_the_random_choice_of_a_second_expert_is_refused(tmp_path: Path) -> None:
    save_nllb(tmp_path, second_expert_policy="sampling")
    with pytest.raises(
        CheckpointError, match="second_expert_policy 'sampling' draws a token's second expert at random"
    ):
        survey_checkpoint(str(tmp_path))

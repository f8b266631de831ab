"""The parts of the training script that its figures rest on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from expertflow.examples import expert_training
from expertflow.examples.trigram import Trigram
from transformers import Qwen3MoeConfig
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts


def test_the_trigram_model_spreads_all_probability_over_the_vocabulary():
    text = np.random.default_rng(0).integers(0, 7, 500)
    trigram = Trigram(text[:300], text[300:], vocabulary=7)
    chances = [np.exp(-trigram.loss_nats(np.array([text[0], text[1], last]))) for last in range(7)]
    assert sum(chances) == pytest.approx(1)


def test_the_trigram_model_learns_what_two_tokens_determine():
    text = np.tile([0, 1, 0, 2, 1, 1, 2], 60)
    trigram = Trigram(text[:300], text[300:], vocabulary=3)
    assert trigram.loss_nats(text[300:]) < 0.3 < np.log(3)


def test_the_sorted_path_computes_what_the_library_does():
    def run(implementation: str) -> list[Any]:
        torch.manual_seed(0)
        config = Qwen3MoeConfig(hidden_size=16, moe_intermediate_size=8, num_experts=6)
        config._experts_implementation = implementation
        experts = Qwen3MoeExperts(config)
        for parameter in experts.parameters():
            torch.nn.init.normal_(parameter)
        hidden = torch.randn(20, 16, requires_grad=True)
        weights, chosen = torch.randn(20, 5).softmax(-1).topk(2)  # expert 5 is chosen by nobody
        output = experts(hidden, chosen, weights)
        output.square().sum().backward()
        return [output, hidden.grad, *(parameter.grad for parameter in experts.parameters())]

    expert_training.register()
    for ours, theirs in zip(run(expert_training.SORTED_EXPERTS), run("eager"), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)


def test_the_balance_loss_is_one_for_even_use_and_more_for_favourites():
    even = torch.eye(4).repeat(8, 1) * 10
    favourite = torch.tensor([[10.0, 0, 0, 0]]).repeat(32, 1)
    assert expert_training.balance_loss((even,), top_k=1) == pytest.approx(1, abs=1e-3)
    assert expert_training.balance_loss((even, favourite), top_k=1) > 2

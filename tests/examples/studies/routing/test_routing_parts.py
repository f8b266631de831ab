"""Routers, the SMoES loss and the figures of routing, each against a count or a formula."""

from __future__ import annotations

import math

import pytest
import torch
from expertflow.examples.studies.routing.fixed_routers import TokenContext, token_keys
from expertflow.examples.studies.routing.kinds import BY_NAME, KINDS, kind_model
from expertflow.examples.studies.routing.smoes import (
    RunningGaussian,
    bin_balance,
    expert_bins,
    mutual_information,
)
from expertflow.examples.studies.routing.specialisation import (
    modality_counts,
    routing_facts,
    specialisation_index,
    trace_routing,
)
from expertflow.examples.studies.vlm.batches import BatchSource
from expertflow.examples.studies.vlm.routers import RouterRecorder
from expertflow.examples.studies.vlm.vocabulary import build_tokenizer
from torch import nn

EVEN = torch.full((4, 2), 0.5)
BY_TURN = torch.tensor([[1.0, 0.0], [0.0, 1.0]] * 2)


def test_information_is_one_bit_for_split_bins_and_nothing_for_even_gates() -> None:
    bins = torch.tensor([0, 1])
    assert float(mutual_information(BY_TURN, BY_TURN, bins, rows=1)) == pytest.approx(math.log(2), rel=1e-5)
    assert float(mutual_information(BY_TURN, EVEN, bins, rows=1)) == pytest.approx(0.0, abs=1e-6)
    assert float(mutual_information(EVEN, BY_TURN, bins, rows=1)) == pytest.approx(0.0, abs=1e-6)


def test_information_is_counted_for_each_row_alone() -> None:
    gates = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [1.0, 0.0]])
    bins = torch.tensor([0, 1])
    assert float(mutual_information(BY_TURN, gates, bins, rows=2)) == pytest.approx(math.log(2), rel=1e-5)
    assert float(mutual_information(BY_TURN, gates, bins, rows=1)) == pytest.approx(0.0, abs=1e-6)


def test_bins_sort_experts_by_their_share_of_text() -> None:
    counts = torch.tensor([[9.0, 1.0, 5.0, 8.0], [1.0, 9.0, 5.0, 2.0]])
    assert expert_bins(counts, bins=2).tolist() == [1, 0, 0, 1]
    assert expert_bins(counts, bins=4).tolist() == [3, 0, 1, 2]


def test_balance_looks_within_a_bin_alone() -> None:
    gates = torch.tensor([[0.45, 0.45, 0.05, 0.05]] * 4)
    bins = torch.tensor([0, 0, 1, 1])
    even = torch.tensor([[0, 2], [1, 3], [0, 2], [1, 3]])
    assert float(bin_balance(gates, even, bins)) == pytest.approx(1.0)
    skewed = torch.tensor([[0.8, 0.1, 0.05, 0.05]] * 4)
    assert float(bin_balance(skewed, torch.tensor([[0, 2]] * 4), bins)) > 1.2


def test_gaussians_tell_two_clouds_apart() -> None:
    torch.manual_seed(0)
    modality = torch.tensor([0, 1] * 200)
    hidden = torch.randn(400, 8) + 3.0 * modality[:, None]
    gaussian = RunningGaussian(torch.zeros(2, 8), torch.ones(2, 8))
    for _ in range(3):
        gaussian.update(hidden, modality)
    assert torch.allclose(gaussian.mean[1], hidden[1::2].mean(0), atol=1e-5)
    assert torch.allclose(gaussian.variance[0], hidden[::2].var(0, unbiased=False), atol=1e-4)
    assert (gaussian.scores(hidden).argmax(-1) == modality).float().mean() > 0.95


def test_keys_of_an_image_are_its_places_and_of_text_its_ids() -> None:
    context = TokenContext(nn.Identity())
    context.ids = torch.tensor([5, 3, 3, 3, 9, 3, 3])
    context.of_images = torch.tensor([False, True, True, True, False, True, True])
    assert token_keys(context).tolist() == [5, 512, 513, 514, 9, 512, 513]


def chosen_by(kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    model = kind_model(BY_NAME[kind], len(build_tokenizer()), seed=2)
    batch = BatchSource(build_tokenizer(), rows=2, seed=1).draw()
    recorder = RouterRecorder(model)
    with recorder.recording(), torch.no_grad():
        model(**batch.model_inputs())
    return torch.stack(recorder.chosen), batch.of_images.flatten()


def test_hard_routing_keeps_modalities_apart() -> None:
    chosen, of_images = chosen_by("hard")
    assert chosen[:, of_images].min() >= 8 > chosen[:, ~of_images].max()
    assert len(chosen[:, of_images].unique()) > 2


def test_hash_routing_is_even_over_ids_and_blind_to_the_image() -> None:
    chosen, _ = chosen_by("hash")
    assert len(chosen.unique()) == 16 and not torch.equal(chosen[0], chosen[1])
    image = chosen.view(4, 2, 128, 2)[:, :, 1:17]
    assert torch.equal(image[:, 0], image[:, 1]), "two images share their places"


def test_dense_kinds_are_as_large_as_they_say() -> None:
    sizes = {kind.name: sum(each.numel() for each in kind_model(kind, 155, 0).parameters()) for kind in KINDS}
    router = 4 * 128 * 15
    assert sizes["soft"] == sizes["smoes"] == sizes["hard"] == sizes["dense-total"] + router
    assert sizes["soft"] - sizes["dense-active"] - router == 4 * 14 * 3 * 128 * 48


def test_specialisation_is_one_when_split_and_nothing_when_shared() -> None:
    split = torch.tensor([[[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5]]])
    shared = torch.full((1, 2, 4), 0.25)
    assert specialisation_index(split) == [1.0] and specialisation_index(shared) == [0.0]


def test_facts_of_hard_routing_are_those_of_its_construction() -> None:
    kind = BY_NAME["hard"]
    trace = trace_routing(kind_model(kind, len(build_tokenizer()), seed=2), kind.experts)
    facts = routing_facts(trace)
    assert facts["msi"] == [1.0] * 4 and facts["text_in_text_bins"] == pytest.approx(1.0)
    assert facts["experts_a_decode_step"]["1"] == 8.0 < facts["experts_a_decode_step"]["32"] <= 32.0
    assert torch.allclose(modality_counts(trace).sum(-1), torch.ones(4, 2))

"""Widened side experts behind the loader's real parts: exact whatever the policy, and not if a byte is wrong."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from expertflow.errors import BudgetError, CheckpointError, UsageError
from expertflow.examples.studies.recommend.serving import measure
from expertflow.examples.studies.recommend.serving.encoder import ResidentFeed, ServedEncoder, SlotFeed
from expertflow.examples.studies.recommend.serving.local_loader import LocalLoader
from expertflow.examples.studies.recommend.serving.widened import resident_experts, survey_experts, write_experts
from expertflow.examples.studies.recommend.xsmoe.growth import expand
from expertflow.examples.studies.recommend.xsmoe.model import Recommender, Sizes
from expertflow.examples.studies.recommend.xsmoe.side import ActiveExperts

WIDTH, EXPERTS, LAYERS, ITEMS, TOP_K = 64, 4, 4, 40, 2


@pytest.fixture(scope="module")
def model() -> Recommender:
    torch.manual_seed(5)
    model = Recommender(Sizes(width=WIDTH, dim=16, inner=32)).eval()
    for layer in model.side_layers():
        for _ in range(EXPERTS - 1):
            expand(layer)
        for parameter in layer.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture(scope="module")
def states() -> torch.Tensor:
    return torch.randn(2, 3, ITEMS, WIDTH, generator=torch.Generator().manual_seed(1))


def batches(steps: int = 8) -> list[np.ndarray]:
    random = np.random.default_rng(2)
    return [np.unique(random.integers(0, ITEMS, 4)) for _ in range(steps)]


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_every_system_is_exact_with_few_slots(
    model: Recommender, states: torch.Tensor, tmp_path: Path, share: float
) -> None:
    result = measure.serve(model, states, batches(), tmp_path, 16, TOP_K, share)
    assert [row.system for row in result.rows] == list(measure.SYSTEMS)
    assert all(row.exact for row in result.rows)
    assert all(row.slots == max(round(share * EXPERTS * LAYERS), LAYERS) for row in result.rows)
    assert all(row.misses > 0 and row.read_bytes >= row.misses * result.expert_bytes for row in result.rows)
    assert len({row.hits + row.misses for row in result.rows}) == 1  # all were asked for the same
    assert max(result.counted_hit_rates, key=result.counted_hit_rates.__getitem__) == "belady"
    assert list(tmp_path.iterdir()) == []


def test_widening_keeps_the_function(model: Recommender, states: torch.Tensor, tmp_path: Path) -> None:
    exact, states = copy.deepcopy(model).double(), states.double()
    write_experts(exact, tmp_path / "e", 32)
    encoder = ServedEncoder(exact, ActiveExperts(TOP_K))
    vectors, routes = encoder.encode(states, ResidentFeed(resident_experts(tmp_path / "e")))
    torch.testing.assert_close(vectors, exact.encode_items(states, ActiveExperts(TOP_K)))
    assert routes.shape == (ITEMS, LAYERS, TOP_K)


def spoiled(file: Path, at: int) -> None:
    """Change one byte of the file."""
    with open(file, "r+b") as stream:
        stream.seek(at)
        value = stream.read(1)[0]
        stream.seek(at)
        stream.write(bytes([value ^ 0x40]))


def test_a_wrong_byte_in_an_expert_shows(model: Recommender, states: torch.Tensor, tmp_path: Path) -> None:
    file = tmp_path / "e"
    write_experts(model, file, 16)
    encoder = ServedEncoder(model, ActiveExperts(TOP_K))
    reference, _ = encoder.encode(states, ResidentFeed(resident_experts(file)))
    survey = survey_experts(file, LAYERS, EXPERTS, TOP_K)
    assert torch.equal(encode(encoder, states, survey), reference)
    spoiled(file, int(survey.place_table()[2, 1, 0, 1]) + 3)
    with pytest.raises(CheckpointError):  # the file is not the one that was surveyed
        encode(encoder, states, survey)
    assert not torch.equal(encode(encoder, states, survey_experts(file, LAYERS, EXPERTS, TOP_K)), reference)


def encode(encoder: ServedEncoder, states: torch.Tensor, survey: measure.Survey) -> torch.Tensor:
    with LocalLoader(survey, 3, "lru") as loader:
        loader.residency.begin_step(0)
        return encoder.encode(states, SlotFeed(loader.residency))[0]


def test_what_cannot_be_served_is_refused(model: Recommender, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="power of two"):
        write_experts(model, tmp_path / "e", 3)
    write_experts(model, tmp_path / "e", 1)
    with pytest.raises(BudgetError, match="fewer than the 4 layers"):
        LocalLoader(survey_experts(tmp_path / "e", LAYERS, EXPERTS, TOP_K), 3, "lru", by_layer=True)
    uneven = Recommender(Sizes(width=WIDTH))
    expand(uneven.side_layers()[1])
    with pytest.raises(UsageError, match="differ in their experts"):
        write_experts(uneven, tmp_path / "e", 2)

"""The side network against a formula in numpy, its growth, and the choice of active experts."""

from __future__ import annotations

from math import erf

import numpy as np
import pytest
import torch
from expertflow.examples.studies.recommend.xsmoe.growth import expand, prune
from expertflow.examples.studies.recommend.xsmoe.model import NO_ITEM, Recommender, Sizes
from expertflow.examples.studies.recommend.xsmoe.side import ActiveExperts, SideLayer, SideNetwork, UsageMeter

WIDTH, ITEMS = 12, 9
SIZES = Sizes(width=WIDTH, dim=8, inner=16, bottleneck=4, dropout=0.0)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(3)


def layer_of(experts: int) -> SideLayer:
    """A layer whose experts differ and matter."""
    layer = SideLayer(WIDTH, 4)
    for _ in range(experts - 1):
        expand(layer)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    return layer


def by_hand(layer: SideLayer, x: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    logits = x @ layer.router.weight.detach().numpy().T
    weights = np.exp(logits - logits.max(1, keepdims=True))
    weights /= weights.sum(1, keepdims=True)
    mixed = weights[:, :1] * hidden
    for number, expert in enumerate(layer.experts):
        inner = x @ expert.get_parameter("down.weight").detach().numpy().T
        inner = inner * 0.5 * (1 + np.vectorize(erf)(inner / np.sqrt(2)))
        mixed = mixed + weights[:, number + 1, None] * (
            x + inner @ expert.get_parameter("up.weight").detach().numpy().T
        )
    return mixed


@pytest.mark.parametrize("experts", [1, 3])
def test_a_layer_computes_the_formula(experts: int) -> None:
    layer, x, hidden = layer_of(experts), torch.randn(ITEMS, WIDTH), torch.randn(ITEMS, WIDTH)
    expected = by_hand(layer, x.numpy(), hidden.numpy())
    np.testing.assert_allclose(layer(x, hidden).detach().numpy(), expected, rtol=1e-4, atol=1e-5)


def test_a_network_starts_at_the_first_state_and_meets_each_other_one() -> None:
    side = SideNetwork(WIDTH, 2, 4)
    states = torch.randn(3, ITEMS, WIDTH)
    first = by_hand(side.layers[0], states[0].numpy(), states[1].numpy())  # pyright: ignore[reportArgumentType]
    second = by_hand(side.layers[1], first, states[2].numpy())  # pyright: ignore[reportArgumentType]
    np.testing.assert_allclose(side(states).detach().numpy(), second, rtol=1e-4, atol=1e-5)


def test_the_model_begins_with_one_expert_a_layer_without_biases() -> None:
    model = Recommender(SIZES)
    assert [len(layer.experts) for layer in model.side_layers()] == [1, 1, 1, 1]
    assert [name for layer in model.side_layers() for name, _ in layer.named_parameters() if "bias" in name] == []


def test_expansion_keeps_the_function_only_without_weight_for_the_new_expert() -> None:
    layer, x, hidden = layer_of(2), torch.randn(ITEMS, WIDTH), torch.randn(ITEMS, WIDTH)
    before = layer(x, hidden)
    expand(layer)
    assert float((layer(x, hidden) - before).detach().abs().max()) > 1e-3  # the default row takes weight from others
    weights = layer.weights(x)
    layer.weights = lambda x: torch.cat([before_weights(layer, x), torch.zeros(len(x), 1)], dim=1)
    torch.testing.assert_close(layer(x, hidden), before)
    assert weights.shape == (ITEMS, 4)


def before_weights(layer: SideLayer, x: torch.Tensor) -> torch.Tensor:
    """The weights of the old rows alone: the new row at minus infinity."""
    return (x @ layer.router.weight[:-1].T).softmax(1)


def test_expansion_freezes_the_old_experts_and_appends_their_mean() -> None:
    layer = layer_of(2)
    rows = layer.router.weight.detach().clone()
    mean = torch.stack([expert.get_parameter("up.weight") for expert in layer.experts]).mean(0)
    expand(layer)
    trained = [[parameter.requires_grad for parameter in expert.parameters()] for expert in layer.experts]
    assert trained == [[False, False], [False, False], [True, True]]
    torch.testing.assert_close(layer.experts[2].get_parameter("up.weight"), mean)
    assert layer.router.weight.requires_grad
    torch.testing.assert_close(layer.router.weight[:3], rows)


@pytest.mark.parametrize(
    "shares, gone", [([0.5, 0.05, 0.45], 1), ([0.3, 0.6, 0.1], None), ([0.02, 0.03, 0.95], 0), ([0.4, 0.3, 0.3], None)]
)
def test_at_most_the_worst_expert_goes_if_it_is_below_the_threshold(shares: list[float], gone: int | None) -> None:
    layer = layer_of(3)
    experts, rows = list(layer.experts), layer.router.weight.detach().clone()
    assert prune(layer, torch.tensor(shares)) == gone
    kept = [number for number in range(3) if number != gone]
    assert list(layer.experts) == [experts[number] for number in kept]
    torch.testing.assert_close(layer.router.weight.detach(), rows[[0, *(number + 1 for number in kept)]])


def test_the_last_expert_stays() -> None:
    layer = layer_of(1)
    assert prune(layer, torch.tensor([0.0])) is None


def test_use_is_the_norm_of_the_weighted_output_without_the_backbone() -> None:
    layer, x = layer_of(2), torch.randn(ITEMS, WIDTH)
    meter = UsageMeter(2)
    layer(x, torch.full((ITEMS, WIDTH), 1e6), meter=meter)
    norms = [
        float((layer.weights(x)[:, number + 1, None] * expert(x)).detach().norm(dim=1).sum())
        for number, expert in enumerate(layer.experts)
    ]
    np.testing.assert_allclose(meter.shares().numpy(), np.array(norms) / sum(norms), rtol=1e-5)


def test_as_many_active_experts_as_there_are_is_dense() -> None:
    layer, x, hidden = layer_of(3), torch.randn(ITEMS, WIDTH), torch.randn(ITEMS, WIDTH)
    for count in (3, 8):
        assert torch.equal(layer(x, hidden, ActiveExperts(count, renormalise=True)), layer(x, hidden))


@pytest.mark.parametrize("renormalise", [False, True])
def test_the_heaviest_experts_and_the_backbone_take_part(renormalise: bool) -> None:
    layer, x, hidden = layer_of(4), torch.randn(ITEMS, WIDTH), torch.randn(ITEMS, WIDTH)
    weights = layer.weights(x).detach().numpy()
    for row in weights:
        row[1 + np.argsort(-row[1:])[2:]] = 0
    if renormalise:
        weights /= weights.sum(1, keepdims=True)
    outputs = [hidden.numpy(), *(expert(x).detach().numpy() for expert in layer.experts)]
    expected = sum(weights[:, number, None] * output for number, output in enumerate(outputs))
    chosen = layer(x, hidden, ActiveExperts(2, renormalise)).detach().numpy()
    np.testing.assert_allclose(chosen, expected, rtol=1e-4, atol=1e-5)


def test_an_expert_runs_for_the_items_that_chose_it_alone() -> None:
    layer, x = layer_of(3), torch.randn(ITEMS, WIDTH)
    rows: list[int] = []
    for expert in layer.experts:
        expert.register_forward_hook(lambda module, inputs, output: rows.append(len(output)))
    layer(x, x, ActiveExperts(1))
    assert sum(rows) == ITEMS


def test_a_user_depends_on_no_later_item_and_on_no_padding() -> None:
    model = Recommender(SIZES).eval()
    vectors = torch.randn(ITEMS, SIZES.dim)
    whole = model.users(vectors[None, :5])
    torch.testing.assert_close(whole[:, :3], model.users(vectors[None, :3]))
    padded = torch.tensor([[0, 1, 2, NO_ITEM, NO_ITEM], [0, 1, 2, 3, 4]])
    torch.testing.assert_close(model.encode_users(vectors, padded), whole[0, [2, 4]])

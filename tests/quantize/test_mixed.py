"""Mixed copies: the layers in which 4 bits would cost most get 8; a run that was broken off goes on."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from expertflow.errors import UsageError
from expertflow.tests.quantize.mixtures import FAMILIES, SHARES, Models, mixture, saved_models
from expertflow.workers.quantize.importance import Importance, count_loads
from expertflow.workers.quantize.mixing import Mixture, measure_costs
from expertflow.workers.quantize.plan import CHANNEL, Precision, QuantisePlan
from expertflow.workers.quantize.rounding import dequantise, quantise
from expertflow.workers.quantize.writing import COSTS, quantise_mixed
from expertflow.workers.traces.routing import UNROUTED
from expertflow.workers.traces.trace import Trace
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return saved_models(tmp_path_factory.mktemp("mixed"))


def routed(layer: list[list[int]], weights: list[list[float]] | None = None, experts: int = 4) -> Trace:
    """A trace of one layer."""
    routes = np.array(layer, dtype=np.uint16)[:, None]
    own = None if weights is None else np.array(weights, dtype=np.float16)[:, None]
    offsets, ids = np.array([0, len(layer)]), np.arange(len(layer))
    return Trace(routes=routes, token_ids=ids, offsets=offsets, expert_count=experts, weights=own)


def test_a_load_is_an_experts_share_of_the_routers_weights() -> None:
    loads = count_loads(routed([[0, 1], [1, 3]], [[0.75, 0.25], [0.5, 0.5]]), Path())
    assert loads.tolist() == [[0.375, 0.375, 0.0, 0.25]]
    assert count_loads(routed([[0, 1], [1, 3]]), Path()).tolist() == [[0.25, 0.5, 0.0, 0.25]]
    assert count_loads(routed([[0, 1], [UNROUTED, UNROUTED]]), Path()).tolist() == [[0.5, 0.5, 0, 0]]
    for empty in (routed([[UNROUTED, UNROUTED]]), routed([[0, 1]], [[0.0, float("nan")]])):
        with pytest.raises(UsageError, match="is empty: it routes no token in MoE layer 0"):
            count_loads(empty, Path())


def test_the_dearest_layers_get_8_bits_and_no_more_than_the_share() -> None:
    figures = Importance([1, 2, 3, 4], np.full((4, 2), 0.5), np.ones(4))
    costs = {1: 0.1, 2: 0.4, 3: 0.4, 4: 0.3}
    chosen = {share: Mixture(figures, share).choose(costs) for share in (0.25, 0.49, 0.5, 0.99)}
    assert chosen == {0.25: (2,), 0.49: (2,), 0.5: (2, 3), 0.99: (2, 3, 4)}
    for share, words in ((0.24, r"none of them.*Give 25%"), (1.0, "all of them")):
        with pytest.raises(UsageError, match=words):
            Mixture(figures, share).choose(costs)


def test_what_experts_contribute_is_what_transformers_adds(models: Models) -> None:
    source, trace = models["deepseek_v3"]
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    expected = []
    for number in (1, 2):
        seen: dict[str, Any] = {}
        layer = model.model.layers[number]
        layer.mlp.experts.register_forward_hook(lambda _m, _g, out, seen=seen: seen.update(added=out))
        layer.register_forward_hook(lambda _m, _g, out, seen=seen: seen.update(state=out))
        with torch.no_grad():
            model(torch.from_numpy(np.load(trace)["token_ids"]).view(6, 20))
        added, state = (seen[name].double().square().sum() for name in ("added", "state"))
        expected.append(float(added / state))
    found = mixture(source, trace, 0.5).importance
    assert found.layers == [1, 2] and found.contributions == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("family", FAMILIES)
def test_costs_are_errors_by_load_and_contribution(family: str, models: Models, tmp_path: Path) -> None:
    """Experts that no token used are not read: here their values are not finite."""
    source, trace = models[family]
    whole = mixture(source, trace, SHARES[family]).importance
    loads = whole.loads.copy()
    loads[0, 2:] = 0
    copied = tmp_path / "model"
    shutil.copytree(source, copied)
    tensors = load_file(copied / "model.safetensors")
    unused = [name for name in tensors if re.search(rf"layers\.{whole.layers[0]}\..*experts\.3\.", name)]
    assert unused
    for name in unused:
        tensors[name] = torch.full_like(tensors[name], torch.nan)
    save_file(tensors, copied / "model.safetensors", metadata={"format": "pt"})
    figures = Importance(whole.layers, loads, whole.contributions)
    matrices = QuantisePlan(copied, Precision(4, CHANNEL)).matrices
    costs = measure_costs(matrices, CHANNEL, figures, tmp_path / "costs", lambda *progress: None)
    for place, layer in enumerate(whole.layers):
        expected = 0.0
        for expert, load in enumerate(loads[place]):
            pattern = rf"layers\.{layer}\..*experts\.{expert}\."
            own = [value for name, value in tensors.items() if re.search(pattern, name)]
            errors = [(dequantise(*quantise(value, 4, value.shape[1])) - value).float().square().sum() for value in own]
            squares = [value.float().square().sum() for value in own]
            expected += float(load * sum(errors) / sum(squares)) if load else 0.0
        assert costs[layer] == pytest.approx(expected * whole.contributions[place], rel=1e-2)


@pytest.mark.parametrize("during", ["measuring", "quantising"])
def test_a_mixed_run_that_was_broken_off_goes_on_where_it_ended(during: str, models: Models, tmp_path: Path) -> None:
    source, trace = models["olmoe"]
    figures, seen = mixture(source, trace, 0.4), list[tuple[str, int]]()

    def break_off(what: str, done: int, total: int) -> None:
        seen.append((what, done))
        if what == during and done > total / 2:
            raise KeyboardInterrupt

    whole = quantise_mixed(source, tmp_path / "whole", CHANNEL, figures, lambda *progress: None)
    with pytest.raises(KeyboardInterrupt):
        quantise_mixed(source, tmp_path / "broken", CHANNEL, figures, break_off)
    unfinished = tmp_path / ".broken.unfinished"
    measured = (unfinished / COSTS).read_text()
    kept: list[str] = []

    def look(what: str, done: int, total: int) -> None:
        if what == "quantising" and not kept:
            kept.append((unfinished / COSTS).read_text())

    again = quantise_mixed(source, tmp_path / "broken", CHANNEL, figures, look)
    assert again == whole and kept[0].startswith(measured) and measured and not unfinished.exists()
    assert (kept[0] == measured) == (during == "quantising")
    for file in (tmp_path / "whole").iterdir():
        assert (tmp_path / "broken" / file.name).read_bytes() == file.read_bytes()
    assert not (tmp_path / "broken" / COSTS).exists()


def test_an_unfinished_copy_with_other_figures_is_begun_anew(models: Models, tmp_path: Path) -> None:
    source, trace = models["olmoe"]
    figures = mixture(source, trace, 0.4)

    def break_off(what: str, done: int, total: int) -> None:
        if what == "quantising":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantise_mixed(source, tmp_path / "small", CHANNEL, figures, break_off)
    reversed_figures = Importance(figures.importance.layers, figures.importance.loads, np.array([0.0, 0.0, 1.0]))
    copy = quantise_mixed(source, tmp_path / "small", CHANNEL, Mixture(reversed_figures, 0.4), lambda *progress: None)
    assert copy.wide == (2,) and copy.errors[2] < 0.01


def test_layers_that_no_model_runs_stay_in_4_bits(models: Models, tmp_path: Path) -> None:
    """As DeepSeek-V3's last one, which predicts a further token: in the files, in no trace."""
    source, trace = models["olmoe"]
    figures = mixture(source, trace, 0.4)
    tensors = load_file(source / "model.safetensors")
    last = {name: value for name, value in tensors.items() if ".layers.2." in name}
    further = {name.replace(".layers.2.", ".layers.9."): value.clone() for name, value in last.items()}
    shutil.copytree(source, tmp_path / "model")
    save_file(tensors | further, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    copy = quantise_mixed(tmp_path / "model", tmp_path / "small", CHANNEL, figures, lambda *progress: None)
    assert list(copy.costs) == [0, 1, 2] and list(copy.errors) == [0, 1, 2, 9] and copy.errors[9] > 0.05

"""The small copy of a configuration has what the full one has, only smaller."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from expertflow.tests.registry.tiny import full_config
from expertflow.workers.model.architecture import build_on_meta, experts_modules
from expertflow.workers.model.probing.probe import probe
from expertflow.workers.model.probing.tiny_copy import layers_of_every_kind, shrink
from transformers.models.auto.configuration_auto import CONFIG_MAPPING


def shapes_by_layer(config: Any, name: str) -> list[tuple[int, ...]]:
    model = build_on_meta(config, torch.float32)
    return [tuple(tensor.shape) for key, tensor in model.named_parameters() if key.endswith(name)]


def test_wider_heads_of_some_layers_stay_wider() -> None:
    """Gemma 4: keys of full attention are twice as wide, and so are their caches."""
    widths = {shape[0] for shape in shapes_by_layer(shrink(full_config("gemma4_text")), "k_norm.weight")}
    assert len(widths) == 2


@pytest.mark.parametrize("model_type", ["jamba", "ernie4_5_moe", "nemotron_h", "dots1", "kimi_linear"])
def test_dense_and_moe_layers_are_both_there_however_the_configuration_says_it(model_type: str) -> None:
    """By periods and offsets, by a first and last layer, by words for each layer."""
    tiny = shrink(full_config(model_type))
    moe_layers = len(list(experts_modules(build_on_meta(tiny, torch.float32))))
    assert 0 < moe_layers < tiny.num_hidden_layers
    assert layers_of_every_kind(tiny) == tiny.num_hidden_layers


def test_what_sparse_attention_selects_is_less_than_a_short_text_has() -> None:
    """Else the probe would never see a position that was not selected."""
    tiny: Any = shrink(full_config("deepseek_v32"))
    assert tiny.index_topk < 9
    assert tiny.index_n_heads >= 8


def test_spare_layers_are_added_while_there_are_any() -> None:
    config = CONFIG_MAPPING["olmoe"]()
    assert [shrink(config, spare).num_hidden_layers for spare in (0, 3, 100)] == [2, 5, 16]


def test_published_values_that_are_small_already_stay() -> None:
    values: dict[str, Any] = {"num_local_experts": 4, "num_experts_per_tok": 1}
    tiny = shrink(CONFIG_MAPPING["mixtral"](**values))
    assert {name: getattr(tiny, name) for name in values} == values


@pytest.mark.parametrize(("width", "heads"), [(54, 3), (30, 5), (30, 3)])
def test_heads_that_do_not_divide_a_small_width_get_one_that_they_do(width: int, heads: int) -> None:
    """Else the copy of an odd little model cannot be run, and its rows can neither be padded nor moved."""
    values: dict[str, Any] = {"hidden_size": width, "num_attention_heads": heads, "num_key_value_heads": heads}
    values |= {"vocab_size": 64, "num_hidden_layers": 2}
    assert probe(CONFIG_MAPPING["olmoe"](**values)).padding

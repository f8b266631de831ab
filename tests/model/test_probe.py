"""What the probe says of models that can and cannot pad and move rows, what caches cost, how long rope is exact."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from expertflow.errors import CheckpointError
from expertflow.tests.models.families import FAMILIES, tiny_config, tiny_model
from expertflow.workers.model import cache_rows as cache_rows
from expertflow.workers.model.growing_cache import GrowingLayer
from expertflow.workers.model.kv_cost import kv_bytes
from expertflow.workers.model.probing.probe import probe, probe_models
from expertflow.workers.model.probing.tiny_copy import layers_of_every_kind, shrink
from expertflow.workers.model.rope import rope_limits
from transformers import PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

FULL_SIZE: dict[str, dict[str, Any]] = {family: {} for family in FAMILIES} | {
    "deepseek_v2": {"num_experts_per_tok": 6},
    "dbrx": {"d_model": 6144, "n_heads": 48, "attn_config": {"kv_n_heads": 8, "clip_qkv": 8.0, "rope_theta": 500000.0}},
}
"""The library's default configurations are those of the published models."""


@pytest.mark.parametrize("family", FAMILIES)
def test_real_configurations_can_pad_and_move(family: str) -> None:
    """A probe that fails without reason would cost a family its batching."""
    before = torch.random.get_rng_state()
    abilities = probe(CONFIG_MAPPING[family](**FULL_SIZE[family]))
    assert abilities.padding, abilities.reason
    assert abilities.moving, abilities.reason
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("family", FAMILIES)
def test_small_copy_has_every_kind_of_layer(family: str) -> None:
    config = CONFIG_MAPPING[family](**FULL_SIZE[family])
    tiny = shrink(config)
    assert tiny.hidden_size <= 64
    if hasattr(config, "layer_types"):
        assert set(tiny.layer_types) == set(config.layer_types)
    if getattr(config, "first_k_dense_replace", 0):
        assert tiny.first_k_dense_replace == config.first_k_dense_replace < tiny.num_hidden_layers


def test_kinds_that_only_come_late_are_not_probed_around() -> None:
    """A small copy without them would say nothing about them."""
    types = ["full_attention"] * 40 + ["sliding_attention"]
    config = tiny_config("gpt_oss", num_hidden_layers=41, layer_types=types)
    with pytest.raises(CheckpointError):
        layers_of_every_kind(config)
    abilities = probe(config)
    assert not abilities.padding
    assert not abilities.moving
    assert "kind of layer" in abilities.reason


class Wrapped:
    """A model of which one input is spoiled."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model, self.config = model, model.config

    def forward(self, logits_to_keep: int = 0, **inputs: Any) -> Any:
        return self.model(logits_to_keep=logits_to_keep, **self.spoil(inputs))

    def spoil(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return inputs

    __call__ = forward


class BlindToMasks(Wrapped):
    def spoil(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in inputs.items() if name != "attention_mask"}


class Entangled(Wrapped):
    """Every row also depends on the first one in the batch, as if a state had stayed behind."""

    def forward(self, logits_to_keep: int = 0, **inputs: Any) -> Any:
        output = self.model(logits_to_keep=logits_to_keep, **inputs)
        output.logits = output.logits + 0.1 * output.logits[:1]
        return output

    __call__ = forward


@pytest.mark.parametrize("family", ["olmoe", "qwen3_next"])
def test_model_that_ignores_the_pad_mask_may_move_rows_of_equal_length(family: str) -> None:
    abilities = probe_models([BlindToMasks(tiny_model(family))])
    assert not abilities.padding
    assert abilities.moving
    assert "padding" in abilities.reason


def test_model_whose_rows_depend_on_each_other_may_do_nothing() -> None:
    abilities = probe_models([Entangled(tiny_model("olmoe"))])
    assert not abilities.padding
    assert not abilities.moving


def test_rows_that_are_moved_wrongly_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """If rows.py and the library disagree one day, the probe must be what notices."""
    honest = cache_rows.take
    monkeypatch.setattr(cache_rows, "take", lambda cache, places: honest(cache, places[::-1]))
    assert not probe_models([tiny_model("olmoe")]).moving


def test_unknown_layer_freezes_but_may_pad(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(cache_rows._FIELDS, GrowingLayer)
    abilities = probe_models([tiny_model("olmoe")])
    assert abilities.padding
    assert not abilities.moving
    assert "GrowingLayer" in abilities.reason


def test_configuration_that_cannot_be_shrunk_is_taken_to_be_unable() -> None:
    config = tiny_config("olmoe")
    config.hidden_act = "no such function"
    abilities = probe(config)
    assert (abilities.padding, abilities.moving) == (False, False)
    assert "no such function" in abilities.reason


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        # 16 layers * 16 heads * 128 * keys and values * 2 bytes
        ("olmoe", 16 * 16 * 128 * 2 * 2),
        # MLA caches one compressed vector of 512 and one rotary key of 64
        ("deepseek_v3", 61 * (512 + 64) * 2),
        # 12 layers of 16 heads, whatever its attention experts
        ("jetmoe", 12 * 16 * 128 * 2 * 2),
        # chunks of 8192 positions count as growing
        ("llama4_text", 48 * 8 * 128 * 2 * 2),
        # 12 of 48 layers attend; 2 heads of 256
        ("qwen3_next", 12 * 2 * 256 * 2 * 2),
    ],
)
def test_bytes_of_a_position_of_published_models(family: str, expected: int) -> None:
    assert kv_bytes(CONFIG_MAPPING[family](), torch.bfloat16).per_position_bytes == expected


def test_rotation_that_asks_for_the_length_is_measured_without_numbers() -> None:
    """Phi-3.5-MoE, as it is published: its own scales for short and long texts."""
    factors = {"short_factor": [1.0] * 64, "long_factor": [4.0] * 64, "short_mscale": 1.25, "long_mscale": 1.5}
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 4096} | factors
    values: dict[str, Any] = {"rope_parameters": rope, "sliding_window": 131072}
    config: Any = CONFIG_MAPPING["phimoe"](**values)
    assert kv_bytes(config, torch.bfloat16).per_position_bytes == 32 * 8 * 128 * 2 * 2
    assert config.rope_parameters["rope_type"] == "longrope"
    assert probe(config).padding


def test_small_windows_are_counted_once_and_wide_ones_by_position() -> None:
    narrow = kv_bytes(tiny_config("mixtral"), torch.float32)
    assert narrow.per_position_bytes == 0
    assert narrow.per_row_bytes == narrow.bytes_of(1, 500)
    wide = kv_bytes(tiny_config("mixtral", sliding_window=4096), torch.float32)
    assert wide.per_row_bytes == 0
    assert wide.per_position_bytes * 500 == wide.bytes_of(1, 500)
    assert wide.bytes_of(1, 5000) == wide.bytes_of(1, 4096)


def test_cache_that_cannot_be_measured_is_refused_by_name() -> None:
    config = tiny_config("olmoe")
    config.hidden_act = "no such function"
    with pytest.raises(CheckpointError, match="no such function"):
        kv_bytes(config, torch.float32)


def test_rope_without_dynamics_has_no_limit() -> None:
    assert [rope_limits(tiny_config(family)) for family in FAMILIES] == [None] * len(FAMILIES)


def test_dynamic_rope_is_exact_up_to_the_original_length() -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    assert rope_limits(tiny_config("olmoe", rope_parameters=rope)) == 256


@pytest.mark.parametrize("length", [64, 65])
def test_longrope_is_exact_up_to_its_limit_and_not_beyond(length: int) -> None:
    """A row decoded past the limit: transformers alone with a cache and without one already disagree there."""
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 6,
        "long_factor": [4.0] * 6,
        "original_max_position_embeddings": 64,
    }
    model = tiny_model("olmoe", rope_parameters=rope)
    assert rope_limits(model.config) == 64
    ids = torch.randint(3, 128, (1, length), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        whole = model(ids).logits[0, -1]
        cached = model(ids[:, :-1], use_cache=True).past_key_values
        stepped = model(ids[:, -1:], past_key_values=cached).logits[0, -1]
    assert ((whole - stepped).abs().max() < 1e-3) == (length <= 64)

"""Mixed copies open in transformers and compressed-tensors, and the engine serves them packed and exactly."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationConfig
from compressed_tensors.utils.match import is_match
from expertflow.ipc.messages import RequestRow, RunStep, Sampling
from expertflow.runtime.verify.local_runtime import LocalRuntime
from expertflow.tests.loader.arenas import CANARY, fill, make_arena, payload
from expertflow.tests.quantize.mixtures import FAMILIES, SHARES, Models, mixed, saved_models
from expertflow.tests.registry.trial import TOLERANCE, exchanged_experts, live
from expertflow.workers.checkpoint.layout import filled_bytes, layer_bytes
from expertflow.workers.loader.slots import HELD
from expertflow.workers.loader.transfer.expert_sources import StoreSource
from expertflow.workers.model.library_quantizer import set_dequantising
from expertflow.workers.quantize.rounding import dequantise, quantise
from expertflow.workers.quantize.writing import MixedCopy
from expertflow.workers.surveyor.surveyor import survey_checkpoint
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return saved_models(tmp_path_factory.mktemp("mixed"))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_mixed_copy_opens_in_transformers_with_each_layers_bits(family: str, models: Models, tmp_path: Path) -> None:
    """Through the quantizer that reads bits from shapes: the library's own takes one number for all experts."""
    source, trace = models[family]
    copy = mixed(source, trace, tmp_path / "small", SHARES[family])
    assert len(copy.wide) == 1 and copy.costs[copy.wide[0]] == max(copy.costs.values())
    narrow = next(layer for layer in copy.costs if layer not in copy.wide)
    assert copy.errors[copy.wide[0]] < 0.01 < 0.05 < copy.errors[narrow]
    ours = opened(tmp_path / "small")
    theirs = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    for layer in copy.costs:
        bits = 8 if layer in copy.wide else 4
        own, other = (model.model.layers[layer].mlp.experts for model in (ours, theirs))
        for name in ("gate_up_proj", "down_proj"):
            for mine, before in zip(getattr(own, name), getattr(other, name), strict=True):
                assert torch.equal(mine, dequantise(*quantise(before.data, bits, before.shape[1])))
    assert torch.equal(ours.lm_head.weight, theirs.lm_head.weight)


def opened(folder: Path) -> Any:
    """The model as docs/how-to/quantise-a-model.md opens it."""
    config = AutoConfig.from_pretrained(folder)
    set_dequantising(config, config.quantization_config)
    return AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=torch.bfloat16).eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_library_refuses_a_mixture_instead_of_reading_it_wrongly(
    family: str, models: Models, tmp_path: Path
) -> None:
    """It reads all experts by the first group. By the one with fewer bits, words of 8 bits would fit, and be noise."""
    source, trace = models[family]
    mixed(source, trace, tmp_path / "small", SHARES[family])
    with pytest.raises(RuntimeError):
        AutoModelForCausalLM.from_pretrained(tmp_path / "small", experts_implementation="eager")


@pytest.mark.parametrize("family", FAMILIES)
def test_compressed_tensors_makes_the_same_values_by_the_group_of_each_module(
    family: str, models: Models, tmp_path: Path
) -> None:
    source, trace = models[family]
    copy = mixed(source, trace, tmp_path / "small", SHARES[family])
    stated = json.loads((tmp_path / "small" / "config.json").read_text())["quantization_config"]
    groups: list[Any] = list(QuantizationConfig.model_validate(stated).config_groups.values())
    stored = load_file(tmp_path / "small" / "model-00001-of-00001.safetensors")
    before = load_file(source / "model.safetensors")
    names = [name.removesuffix(".weight_packed") for name in stored if name.endswith(".weight_packed")]
    compressor: Any = BaseCompressor.get_value_from_registry("pack-quantized")
    assert names
    for name in names:
        (group,) = [own for own in groups if is_match(name, torch.nn.Linear(1, 1), own.targets)]
        parts = {part: stored[f"{name}.{part}"] for part in ("weight_packed", "weight_scale", "weight_shape")}
        bits = 8 if int(name.split(".layers.")[1].split(".")[0]) in copy.wide else 4
        weight = before[f"{name}.weight"]
        expected = dequantise(*quantise(weight, bits, weight.shape[1]))
        assert torch.equal(compressor.decompress(parts, group)["weight"], expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_module_is_in_two_groups_and_the_wide_one_is_first(family: str, models: Models, tmp_path: Path) -> None:
    """What is known by config.json alone takes the first group: slots are as large as its experts."""
    source, trace = models[family]
    copy = mixed(source, trace, tmp_path / "small", SHARES[family])
    groups = json.loads((tmp_path / "small" / "config.json").read_text())["quantization_config"]["config_groups"]
    assert list(groups) == ["experts_8_bits", "experts_4_bits"]
    stored = load_file(tmp_path / "small" / "model-00001-of-00001.safetensors")
    for name in (name.removesuffix(".weight_packed") for name in stored if name.endswith(".weight_packed")):
        found = [key for key, group in groups.items() if re.match(group["targets"][0].removeprefix("re:"), name)]
        layer = int(name.split(".layers.")[1].split(".")[0])
        assert found == ["experts_8_bits" if layer in copy.wide else "experts_4_bits"]


def twin(source: Path, copy: MixedCopy) -> Any:
    """transformers' model in float32 with the exact products of codes and scales as its experts."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16).float().eval()
    for layer in copy.costs:
        for parameter in model.model.layers[layer].mlp.experts.parameters():
            for weight in parameter.data:
                codes, scales = quantise(weight.bfloat16(), 8 if layer in copy.wide else 4, weight.shape[1])
                weight.copy_(codes.float() * scales.float())
    return model


@pytest.mark.parametrize(
    ("family", "dtype"),
    [
        ("olmoe", "float32"),
        ("deepseek_v3", "bfloat16"),
        pytest.param("olmoe", "bfloat16", marks=pytest.mark.slow),
        pytest.param("deepseek_v3", "float32", marks=pytest.mark.slow),
    ],
)
@torch.inference_mode()
def test_the_engine_serves_both_layouts_packed_with_the_same_bits_at_every_budget(
    family: str, dtype: str, models: Models, tmp_path: Path
) -> None:
    """I1a, also against dequantised slots; I1b against transformers on the dequantised weights."""
    source, trace = models[family]
    copy = mixed(source, trace, tmp_path / "small", SHARES[family])
    packed = survey_checkpoint(str(tmp_path / "small"), dtype=dtype, experts_in="packed")
    dequantised = survey_checkpoint(str(tmp_path / "small"), dtype=dtype, experts_in="dequantised")
    assert {packing.format for packing in packed.packings} == {"int4", "int8"} and len(set(packed.variants)) == 2
    few, resident = live(packed, 3), live(packed, packed.expert_count)
    assert few.digests == resident.digests == live(dequantised, 3).digests
    if dtype == "float32":
        assert few.error(twin(source, copy)) <= TOLERANCE
        assert live(exchanged_experts(packed), 3).digests != few.digests


@pytest.mark.parametrize("family", FAMILIES)
def test_loads_count_the_bytes_of_their_layers(family: str, models: Models, tmp_path: Path) -> None:
    """A slot has room for the largest expert, but what is read is told as it is."""
    source, trace = models[family]
    copy = mixed(source, trace, tmp_path / "small", SHARES[family])
    packed = survey_checkpoint(str(tmp_path / "small"), dtype="bfloat16", experts_in="packed")
    sizes = np.array(layer_bytes(packed))
    assert [own == packed.expert_bytes for (own,) in sizes] == [layer in copy.wide for layer in copy.costs]
    assert sizes.min() < 0.7 * packed.expert_bytes
    with LocalRuntime(packed, packed.expert_count) as runtime:
        runtime.run(RunStep(number=1, unit=1, admit=[RequestRow(0, [5, 6, 7], 0, Sampling())]))
        held = runtime.ledger.residence().reshape(packed.layers, packed.experts) == HELD
        counted = runtime._loader.counters()["read_bytes"]  # pyright: ignore[reportPrivateUsage]
    assert counted == (held * sizes).sum() > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_a_mixed_model_is_as_large_as_its_layers_are(family: str, models: Models, tmp_path: Path) -> None:
    """Not as if all layers had 8 bits; and the host store copies no more than a layer's experts are."""
    source, trace = models[family]
    mixed(source, trace, tmp_path / "small", SHARES[family])
    packed = survey_checkpoint(str(tmp_path / "small"), dtype="bfloat16", experts_in="packed")
    sizes = [size for (size,) in layer_bytes(packed)]
    assert packed.experts_bytes == sum(sizes) * packed.experts < packed.expert_bytes * packed.expert_count
    assert packed.stored_expert_bytes == pytest.approx(sum(sizes) / len(sizes), abs=1)
    store = make_arena(packed.expert_count * packed.stride_bytes)
    fill(packed, {key: divmod(key, packed.experts) for key in range(packed.expert_count)}, store)
    wide, narrow = sizes.index(max(sizes)), sizes.index(min(sizes))
    assert filled_bytes(packed, narrow, 1) < 0.8 * filled_bytes(packed, wide, 1)
    memory = make_arena(2 * packed.stride_bytes)
    fill(packed, {0: (narrow, 1), 1: (wide, 1)}, memory, StoreSource(store, packed))
    for slot, layer in enumerate((narrow, wide)):
        held = store[(layer * packed.experts + 1) * packed.stride_bytes :]
        parts = payload(packed, layer, 1)
        for part in (parts[number] for number in packed.tensors_of(layer, 1)):
            assert np.array_equal(memory[slot * packed.stride_bytes :][part], held[part])
    assert (memory[filled_bytes(packed, narrow, 1) : packed.stride_bytes] == CANARY).all()

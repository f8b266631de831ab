"""Experts under the names and in the shapes of published checkpoints, written down by hand: what arrives in slots is
what transformers loads from the same files.

The names were compared with public indices of those checkpoints and with what other programs read
(tests/data/README.md); elsewhere in the tests transformers itself writes them. Sizes are scaled down.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from expertflow.tests.loader.arenas import all_experts, assert_experts_equal, fill, make_arena
from expertflow.tests.models import families, published
from expertflow.tests.models.switch import tiny_switch
from expertflow.tests.registry import tiny
from expertflow.workers.surveyor.surveyor import survey_checkpoint
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel, SwitchTransformersForConditionalGeneration

FLOAT8, BYTES, BFLOAT = torch.float8_e4m3fn, torch.uint8, torch.bfloat16
BLOCK = 8
"""128 in the published checkpoints."""
EXPERTS = re.compile(r"(?<!attention)\.(experts|mlp\.input_linear|mlp\.output_linear)\b")
"""In what transformers writes."""


@dataclass(frozen=True)
class Layout:
    """`tensors`: published name -> shape in letters of `sizes`, and type."""

    save: Callable[[Path], Any]
    sizes: dict[str, int]
    layers: list[int]
    tensors: dict[str, tuple[str, torch.dtype]]
    quantised: dict[str, Any] = field(default_factory=dict)
    prefix: str = ""
    """Of all names, before the one that the language model alone has."""
    parts: int = 1
    """Encoder and decoder have layers of the same numbers."""


def _family(name: str, **options: Any) -> Callable[[Path], Any]:
    return lambda folder: families.save_tiny(name, folder, dtype=BFLOAT, **options)


def _scaled(name: str, shape: str) -> dict[str, tuple[str, torch.dtype]]:
    """A matrix in FP8 and its scales, one for each block."""
    grid = " ".join(f"{letter}/{BLOCK}" for letter in shape.split())
    return {f"{name}.weight": (shape, FLOAT8), f"{name}.weight_scale_inv": (grid, torch.float32)}


def _swiglu(prefix: str, gate: str, up: str, down: str) -> dict[str, tuple[str, torch.dtype]]:
    return _scaled(prefix + gate, "I H") | _scaled(prefix + up, "I H") | _scaled(prefix + down, "H I")


FP8 = {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK]}
MXFP4 = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router"]}
DEEPSEEK = "model.layers.{layer}.mlp.experts.{expert}."
MINIMAX = "model.layers.{layer}.block_sparse_moe.experts.{expert}."
GPT_OSS = "model.layers.{layer}.mlp.experts."

LAYOUTS = {
    "Mixtral-8x7B": Layout(
        _family("mixtral"),
        {"E": 8, "H": 48, "I": 32},
        [0, 1, 2],
        {
            MINIMAX + "w1.weight": ("I H", BFLOAT),
            MINIMAX + "w2.weight": ("H I", BFLOAT),
            MINIMAX + "w3.weight": ("I H", BFLOAT),
        },
    ),
    "DeepSeek-V3": Layout(
        _family("deepseek_v3"),
        {"E": 8, "H": 48, "I": 16},
        [1, 2],
        _swiglu(DEEPSEEK, "gate_proj", "up_proj", "down_proj"),
        FP8,
    ),
    "MiniMax-M2": Layout(
        lambda folder: tiny.save_tiny("minimax_m2", folder, dtype=BFLOAT),
        {"E": 8, "H": 32, "I": 32},
        [0, 1],
        _swiglu(MINIMAX, "w1", "w3", "w2"),
        FP8,
    ),
    "gpt-oss-20b": Layout(
        _family("gpt_oss", **published.MXFP4_SIZES),
        {"E": 8, "H": 64, "I": 32, "2I": 64},
        [0, 1, 2, 3],
        {
            GPT_OSS + "gate_up_proj_blocks": ("E 2I H/32 16", BYTES),
            GPT_OSS + "gate_up_proj_scales": ("E 2I H/32", BYTES),
            GPT_OSS + "gate_up_proj_bias": ("E 2I", BFLOAT),
            GPT_OSS + "down_proj_blocks": ("E H I/32 16", BYTES),
            GPT_OSS + "down_proj_scales": ("E H I/32", BYTES),
            GPT_OSS + "down_proj_bias": ("E H", BFLOAT),
        },
        MXFP4,
    ),
    "dbrx": Layout(
        _family("dbrx"),
        {"EF": 8 * 16, "D": 48, "E": 8},
        [0, 1, 2],
        {f"transformer.blocks.{{layer}}.ffn.experts.mlp.{name}": ("EF D", BFLOAT) for name in ("w1", "v1", "w2")},
    ),
    "jetmoe-8b": Layout(
        _family("jetmoe"),
        {"E": 8, "H": 48, "I": 32, "2I": 64},
        [0, 1],
        {
            "model.layers.{layer}.mlp.input_linear.weight": ("E 2I H", BFLOAT),
            "model.layers.{layer}.mlp.output_linear.weight": ("E H I", BFLOAT),
        },
    ),
    "switch-base-8": Layout(
        lambda folder: tiny_switch(dtype=BFLOAT).save_pretrained(folder),
        {"D": 48, "F": 32, "E": 8},
        [1, 3],
        {
            f"{part}.mlp.experts.expert_{{expert}}.{name}.weight": (shape, BFLOAT)
            for part in ("encoder.block.{layer}.layer.1", "decoder.block.{layer}.layer.2")
            for name, shape in (("wi", "F D"), ("wo", "D F"))
        },
        parts=2,
    ),
    "Llama-4-Scout": Layout(
        _family("llama4_text"),
        {"E": 8, "H": 48, "I": 32, "2I": 64},
        [1, 2, 3],
        {
            "language_model.model.layers.{layer}.feed_forward.experts.gate_up_proj": ("E H 2I", BFLOAT),
            "language_model.model.layers.{layer}.feed_forward.experts.down_proj": ("E I H", BFLOAT),
        },
        prefix="language_model.",
    ),
}


def save_published(layout: Layout, folder: Path) -> None:
    """What transformers wrote, but for the experts: these as they are published."""
    layout.save(folder)
    kept = {name: tensor for name, tensor in stored(folder).items() if not EXPERTS.search(name)}
    kept = {layout.prefix + name: tensor for name, tensor in kept.items()}
    generator = torch.Generator().manual_seed(7)
    added = {
        name.format(layer=layer, expert=expert): drawn(shape_of(shape, layout.sizes), dtype, generator)
        for name, (shape, dtype) in layout.tensors.items()
        for layer in layout.layers
        for expert in range(layout.sizes["E"])
    }
    for file in folder.glob("model*.safetensors*"):
        file.unlink()
    save_file(kept | added, folder / "model.safetensors", {"format": "pt"})
    if layout.quantised:
        published.state_quantisation(folder, layout.quantised)
    if layout.prefix:
        wrap_config(folder)


def stored(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def shape_of(text: str, sizes: dict[str, int]) -> list[int]:
    shape = []
    for each in text.split():
        letter, _, divisor = each.partition("/")
        shape.append((sizes.get(letter) or int(letter)) // int(divisor or 1))
    return shape


def drawn(shape: list[int], dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    if dtype is BYTES:
        return torch.randint(100, 140, shape, generator=generator, dtype=torch.uint8)
    return torch.randn(shape, generator=generator).to(dtype)


def wrap_config(folder: Path) -> None:
    """The configuration of a model that takes images, whose language model this is."""
    file = folder / "config.json"
    text = json.loads(file.read_text())
    whole = {"model_type": "llama4", "architectures": ["Llama4ForConditionalGeneration"], "text_config": text}
    file.write_text(json.dumps(whole | {"dtype": "bfloat16"}))


def library(layout: Layout, folder: Path) -> PreTrainedModel:
    if layout.quantised:
        return published.library_model(folder)
    if "switch" in str(folder):
        return SwitchTransformersForConditionalGeneration.from_pretrained(folder, dtype=BFLOAT)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=BFLOAT)


@pytest.mark.parametrize("name", LAYOUTS)
def test_published_names_reach_the_slots(name: str, tmp_path: Path) -> None:
    layout, folder = LAYOUTS[name], tmp_path / name
    save_published(layout, folder)
    survey = survey_checkpoint(str(folder))
    assert survey.layers == layout.parts * len(layout.layers) and survey.experts == layout.sizes["E"]
    memory = make_arena(survey.expert_count * survey.stride_bytes)
    assert not any(transfer.error for transfer in fill(survey, all_experts(survey), memory))
    model = library(layout, folder)
    reference = model.state_dict() | apart(model)
    assert_experts_equal(survey, all_experts(survey), memory, reference)


def apart(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Experts that the library keeps one by one, as our adapter names them."""
    found: dict[str, dict[int, torch.Tensor]] = {}
    for name, tensor in model.state_dict().items():
        if match := re.fullmatch(r"(.*\.experts)\.expert_(\d+)\.(w[io]\.weight)", name):
            found.setdefault(f"{match[1]}.{match[3]}", {})[int(match[2])] = tensor
    return {name: torch.stack([own[number] for number in sorted(own)]) for name, own in found.items()}

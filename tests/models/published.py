"""Tiny models stored as large ones are published: block FP8 (DeepSeek-V3, MiniMax-M2, Qwen3) and MXFP4 (gpt-oss)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from expertflow.tests.models.families import save_tiny
from safetensors.torch import load_file, save_file
from torch.nn.functional import pad
from transformers import AutoModelForCausalLM, FineGrainedFP8Config, PreTrainedModel
from transformers.quantizers import quantizer_finegrained_fp8
from transformers.utils.quantization_config import Mxfp4Config

Tensors = dict[str, torch.Tensor]

GROUP = 32
"""Values of a row that share an exponent in MXFP4."""
FP8_SIZES: dict[str, Any] = {"hidden_size": 48, "moe_intermediate_size": 32}
MXFP4_SIZES: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 32}
_LARGEST_FP8, _FP4 = 448.0, torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])


def save_block_fp8(family: str, folder: Path, block: tuple[int, int] = (8, 8), **options: Any) -> None:
    """Attention, dense layers and experts in e4m3, with one float32 scale for each block; the rest in bfloat16."""
    save_tiny(family, folder, dtype=torch.bfloat16, **FP8_SIZES | options)
    rewrite(folder, lambda name, tensor: _block_fp8(name, tensor, block))
    stated = {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": list(block)}
    state_quantisation(folder, stated)


def save_mxfp4(folder: Path, **options: Any) -> None:
    """gpt-oss with its experts' matrices as blocks of 4-bit values and scales, turned as they are published."""
    save_tiny("gpt_oss", folder, dtype=torch.bfloat16, **MXFP4_SIZES | options)
    rewrite(folder, _mxfp4)
    skipped = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    state_quantisation(folder, {"modules_to_not_convert": skipped, "quant_method": "mxfp4"})


def rewrite(folder: Path, change: Callable[[str, torch.Tensor], Tensors]) -> None:
    """Change every tensor of a checkpoint, file by file."""
    for file in folder.glob("*.safetensors"):
        changed: Tensors = {}
        for name, tensor in load_file(file).items():
            changed |= change(name, tensor)
        save_file({name: tensor.contiguous() for name, tensor in changed.items()}, file, {"format": "pt"})
        _reindex(folder, file.name, changed)


def _reindex(folder: Path, shard: str, tensors: Tensors) -> None:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        table = json.loads(index.read_text())
        kept = {name: own for name, own in table["weight_map"].items() if own != shard}
        index.write_text(json.dumps(table | {"weight_map": kept | dict.fromkeys(tensors, shard)}))


def state_quantisation(folder: Path, stated: dict[str, Any]) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"quantization_config": stated}))


def _block_fp8(name: str, tensor: torch.Tensor, block: tuple[int, int]) -> Tensors:
    if not name.endswith(("_proj.weight", "_proj_with_mqa.weight", "w1.weight", "w2.weight", "w3.weight")):
        return {name: tensor}
    weight, scales = quantise_blocks(tensor.float(), block)
    return {name: weight, f"{name}_scale_inv": scales}


def quantise_blocks(matrix: torch.Tensor, block: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """e4m3 and float32 scales, of a matrix whose last blocks may be smaller."""
    (rows, columns), (high, wide) = matrix.shape, block
    padded = pad(matrix, (0, -columns % wide, 0, -rows % high))
    blocks = padded.unflatten(1, (-1, wide)).unflatten(0, (-1, high))
    scales = blocks.abs().amax(dim=(1, 3)) / _LARGEST_FP8
    weight = (blocks / scales[:, None, :, None]).reshape(padded.shape)[:rows, :columns]
    return weight.to(torch.float8_e4m3fn), scales


def _mxfp4(name: str, tensor: torch.Tensor) -> Tensors:
    if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
        return {name: tensor}
    groups = tensor.float().transpose(1, 2).unflatten(-1, (-1, GROUP))
    exponents = groups.abs().amax(-1).log2().floor() - 2
    sizes = (groups / exponents.exp2()[..., None]).abs().contiguous()
    nearest = torch.bucketize(sizes, (_FP4[1:] + _FP4[:-1]) / 2)
    codes = (nearest + 8 * (groups < 0)).to(torch.uint8)
    return {
        f"{name}_blocks": codes[..., 0::2] | codes[..., 1::2] << 4,
        f"{name}_scales": (exponents + 127).to(torch.uint8),
    }


def library_model(folder: Path, dtype: str = "auto") -> PreTrainedModel:
    """transformers' own dequantised model.

    Without `accelerate` it refuses block FP8, though it needs nothing of it. And what has no scale of its own it leaves
    as it is stored, whatever the dtype asked for: that is made good here.
    """
    method = json.loads((folder / "config.json").read_text())["quantization_config"]["quant_method"]
    stated = Mxfp4Config(dequantize=True) if method == "mxfp4" else FineGrainedFP8Config(dequantize=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantizer_finegrained_fp8, "is_accelerate_available", lambda: True)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, quantization_config=stated).eval()
    if dtype != "auto" and method != "mxfp4":
        for parameter in model.parameters():
            parameter.data = parameter.data.to(getattr(torch, dtype))
    return model

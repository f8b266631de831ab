"""Tiny models as compressed-tensors, GPTQ and AWQ publish them, beside the same values in dense checkpoints.

compressed-tensors packs and unpacks its own formats. GPTQ and AWQ are packed here code by code, as AutoGPTQ's and
AutoAWQ's linear layers are, from codes whose values are known; none of the readers' functions is used.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from expertflow.tests.models.families import save_tiny
from expertflow.tests.models.published import Tensors, rewrite, state_quantisation

SIZES: dict[str, Any] = {"hidden_size": 64, "moe_intermediate_size": 32, "head_dim": 16}
GROUP = 16
Both = tuple[Tensors, torch.Tensor]
"""Tensors of a matrix as they are stored, by the last part of their names, and its values in float32."""
Store = Callable[[torch.Tensor, torch.dtype], Both]
"""Stores a float32 matrix [rows, columns] with scales in a type."""


def save_coded(
    form: str, folder: Path, scales: torch.dtype = torch.float32, family: str = "qwen3_moe", only: str = "_proj.weight"
) -> Path:
    """Save a model whose linear layers are stored in `form`; return the folder of its dense twin.

    `only`: part of the names of the matrices that are quantised.
    """
    store, stated = FORMS[form]
    save_tiny(family, folder, dtype=torch.float32, **SIZES)
    dense = folder / "dense"
    shutil.copytree(folder, dense)
    kept: Tensors = {}

    def change(name: str, tensor: torch.Tensor) -> Tensors:
        if not name.endswith("_proj.weight") or only not in name:
            return {name: tensor}
        stored, values = store(tensor.float(), scales)
        kept[name] = values
        return {f"{name.removesuffix('weight')}{own}": each.contiguous() for own, each in stored.items()}

    rewrite(folder, change)
    rewrite(dense, lambda name, tensor: {name: kept.get(name, tensor)})
    state_quantisation(folder, stated)
    return dense


def _compressed(form: str, **options: Any) -> tuple[Store, dict[str, Any]]:
    args = QuantizationArgs(**options)
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    compressor: Any = BaseCompressor.get_value_from_registry(form)

    def store(weight: torch.Tensor, scales: torch.dtype) -> Both:
        given = {"weight": weight, **_parameters(weight, args, scales)}
        stored = compressor.compress(given, scheme)
        values = compressor.decompress(dict(stored), scheme)["weight"].float()
        return stored, _unrounded(stored, values) if "weight_global_scale" in stored else values

    group = {"targets": ["Linear"], "weights": args.model_dump(mode="json")}
    stated = {"quant_method": "compressed-tensors", "format": form, "quantization_status": "compressed"}
    return store, {**stated, "config_groups": {"group_0": group}, "ignore": ["lm_head"]}


def _unrounded(stored: Tensors, rounded: torch.Tensor) -> torch.Tensor:
    """NVFP4 in float32: the library rounds its values to bfloat16 whatever is asked for."""
    codes = unpack_fp4_from_uint8(stored["weight_packed"], *rounded.shape, dtype=torch.float32)
    scales = stored["weight_scale"].float() / stored["weight_global_scale"]
    values = codes * scales.repeat_interleave(GROUP, 1)
    assert torch.equal(values.bfloat16(), rounded.bfloat16())
    return values


def _parameters(weight: torch.Tensor, args: QuantizationArgs, scales: torch.dtype) -> Tensors:
    """Scales from the largest values, one group of which is nothing but zeros, and zero points that differ."""
    width = args.group_size if args.group_size and args.group_size > 0 else weight.shape[1]
    groups = weight.unflatten(1, (-1, width)).abs().amax(-1)
    if args.strategy == "tensor":
        groups = groups.max().reshape(1)
    if args.type == "float" and args.num_bits == 4:
        whole = 448.0 * 6.0 / weight.abs().max().reshape(1)
        return {"weight_scale": (groups / 6.0 * whole).clamp(min=1e-3), "weight_global_scale": whole}
    largest = 448.0 if args.type == "float" else 2 ** (args.num_bits - 1) - 1
    factors = (groups / largest).to(scales)
    if args.type == "float":
        return {"weight_scale": factors}
    factors[0] = 1e-6
    zeros = torch.zeros_like(factors, dtype=torch.int8)
    if not args.symmetric:
        zeros = (torch.arange(factors.numel()).reshape(factors.shape) % 5 - 2).to(torch.int8)
    return {"weight_scale": factors, "weight_zero_point": zeros}


def _gptq(act_order: bool, version: str = "gptq", bits: int = 4) -> tuple[Store, dict[str, Any]]:
    def store(weight: torch.Tensor, scales: torch.dtype) -> Both:
        rows, columns = weight.shape
        group_of = torch.arange(columns) // GROUP
        if act_order:
            group_of = group_of[torch.randperm(columns, generator=torch.Generator().manual_seed(columns))]
        codes, zeros, factors = _codes(weight, group_of, scales)
        stored = zeros if version == "gptq_v2" else zeros - 1
        packed = {
            "qweight": _words(codes.t().reshape(columns // 8, 8, rows).transpose(1, 2)),
            "qzeros": _words(stored.t().reshape(len(factors), rows // 8, 8)),
            "scales": factors,
            "g_idx": group_of.to(torch.int32),
        }
        return packed, (codes - zeros[:, group_of]) * factors.float().t()[:, group_of]

    stated = {"quant_method": "gptq", "bits": bits, "group_size": GROUP, "desc_act": act_order, "sym": False}
    return store, {**stated, "checkpoint_format": version}


def _awq() -> tuple[Store, dict[str, Any]]:
    order = [0, 2, 4, 6, 1, 3, 5, 7]

    def store(weight: torch.Tensor, scales: torch.dtype) -> Both:
        rows, columns = weight.shape
        group_of = torch.arange(columns) // GROUP
        codes, zeros, factors = _codes(weight, group_of, scales)
        packed = {
            "qweight": _words(codes.t().reshape(columns, rows // 8, 8)[..., order]),
            "qzeros": _words(zeros.t().reshape(len(factors), rows // 8, 8)[..., order]),
            "scales": factors,
        }
        return packed, (codes - zeros[:, group_of]) * factors.float().t()[:, group_of]

    stated = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"}
    return store, stated


def _codes(weight: torch.Tensor, group_of: torch.Tensor, scales: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Codes int64 [rows, columns] below 16, zero points [rows, groups] of 1 to 15, scales [groups, rows]."""
    groups = int(group_of.max()) + 1
    largest = torch.stack([weight[:, group_of == group].abs().amax(1) for group in range(groups)])
    factors = (largest / 7).to(scales)
    factors[0, 0] = 0
    zeros = (torch.arange(len(weight))[:, None] * 3 + torch.arange(groups)[None]) % 15 + 1
    spread = factors.float().t()[:, group_of].clamp(min=1e-9)
    return (weight / spread).round().long().add(zeros[:, group_of]).clamp(0, 15), zeros, factors


def _words(codes: torch.Tensor) -> torch.Tensor:
    """Pack [.., 8] codes into one word each, the first in the low bits."""
    words = sum(codes[..., place].long() << (4 * place) for place in range(8))
    return torch.as_tensor(words).to(torch.int64).sub(2**32 * (torch.as_tensor(words) >= 2**31)).to(torch.int32)


_INT4: dict[str, Any] = {"num_bits": 4, "type": "int"}
FORMS: dict[str, tuple[Store, dict[str, Any]]] = {
    "int4 groups": _compressed("pack-quantized", **_INT4, strategy="group", group_size=GROUP),
    "int4 groups, zeros": _compressed("pack-quantized", **_INT4, strategy="group", group_size=GROUP, symmetric=False),
    "int4 channels": _compressed("pack-quantized", **_INT4, strategy="channel"),
    "int8 words": _compressed("pack-quantized", num_bits=8, type="int", strategy="group", group_size=GROUP),
    "int8 words, zeros": _compressed("pack-quantized", num_bits=8, type="int", strategy="channel", symmetric=False),
    "int8": _compressed("int-quantized", num_bits=8, type="int", strategy="channel"),
    "fp8 channels": _compressed("float-quantized", num_bits=8, type="float", strategy="channel"),
    "fp8 tensor": _compressed("float-quantized", num_bits=8, type="float", strategy="tensor"),
    "nvfp4": _compressed("nvfp4-pack-quantized", num_bits=4, type="float", strategy="tensor_group", group_size=GROUP),
    "gptq": _gptq(act_order=False),
    "gptq act-order": _gptq(act_order=True),
    "gptq v2": _gptq(act_order=False, version="gptq_v2"),
    "awq": _awq(),
}
"""Form -> how it stores a matrix, and the `quantization_config` that states it."""

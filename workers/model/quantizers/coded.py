"""Quantizer of transformers that dequantises packed matrices (compressed-tensors, GPTQ, AWQ) while it loads them.

The library's need packages with kernels for GPUs, or decompress in another order of operations. This one reads with the
functions that read experts, so the skeleton and experts follow one rule.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from transformers.core_model_loading import ConversionOps
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from ...packed.coding import Coding, Facts
from ...packed.formats.reading import NAMES, code
from ...packed.unpacking import unpack_rows

CODED = "expertflow_coded"
"""The `quant_method` that stands for this quantizer; `coded_method` is the checkpoint's own."""
_ROWS_AT_ONCE = 1024


class CodedConfig(QuantizationConfigMixin):
    """Configuration of a checkpoint's quantisation, with all that config.json states."""

    def __init__(self, **stated: Any) -> None:
        self.quant_method = CODED  # pyright: ignore[reportAttributeAccessIssue] - the library's names its own alone
        self.dequantize = True
        self.stated: dict[str, Any] = {**stated, "quant_method": stated.get("coded_method")}

    def to_dict(self) -> dict[str, Any]:
        return {**self.stated, "quant_method": CODED, "coded_method": self.stated["quant_method"]}


class CodedQuantizer(HfQuantizer):
    """Quantizer that leaves a dense model. Who registers it sets `dtypes` once there is a model."""

    requires_calibration = True
    dtypes: Mapping[str, torch.dtype]
    """Type of each tensor after loading."""

    def __init__(self, quantization_config: QuantizationConfigMixin, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self.stated: dict[str, Any] = getattr(quantization_config, "stated", {})
        self.serialized_names = {"weight": NAMES[str(self.stated["quant_method"])]}

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        """Accept any environment: nothing is needed to dequantise."""

    def update_dtype(self, dtype: torch.dtype) -> torch.dtype:
        self._dtype = dtype
        return dtype

    def get_load_operations(self) -> dict[str, Any]:
        return {"dequantize": DequantizeCoded}

    def is_serializable(self) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride]
        return False

    @property
    def is_trainable(self) -> bool:  # pyright: ignore
        return False


class DequantizeCoded(ConversionOps):
    """Operation that makes the values of packed matrices in float32, then casts them."""

    def __init__(self, hf_quantizer: Any) -> None:
        self.hf_quantizer = hf_quantizer  # by this name the library knows that it must not cast what is stored
        self.stated: dict[str, Any] = hf_quantizer.stated

    def convert(
        self,
        input_dict: dict[str, Any],
        source_patterns: list[str],
        target_patterns: list[str],
        full_layer_name: str = "",
        model: Any = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Return the weights of every projection, in the type that `full_layer_name` is loaded in."""
        dtype = self.hf_quantizer.dtypes[full_layer_name]
        columns = model.get_parameter(full_layer_name).shape[-1]
        projections: dict[str, dict[str, list[torch.Tensor]]] = defaultdict(dict)
        for pattern, held in input_dict.items():
            base, _, suffix = pattern.rpartition(".")
            projections[base][suffix] = held if isinstance(held, list) else [held]
        if list(projections) == [""]:
            (values,) = _projection(self.stated, projections[""], columns, dtype)
            return {full_layer_name: values}
        return {f"{base}.weight": _projection(self.stated, held, columns, dtype) for base, held in projections.items()}


def _projection(
    stated: dict[str, Any], held: dict[str, list[torch.Tensor]], columns: int, dtype: torch.dtype
) -> list[torch.Tensor]:
    """Return the values of all matrices of a projection, each with so many columns."""
    count = len(next(iter(held.values())))
    return [
        dequantise(stated, {suffix: tensors[index] for suffix, tensors in held.items()}, columns).to(dtype)
        for index in range(count)
    ]


def dequantise(stated: dict[str, Any], stored: dict[str, torch.Tensor], columns: int) -> torch.Tensor:
    """Return the values of a matrix, [rows, columns], given its stored tensors; as they are if it is not quantised."""
    weight = stored.get("weight")
    if weight is not None and weight.is_floating_point():
        return _scaled(weight, stored.get("weight_scale"))
    facts = {
        suffix: Facts(str(tensor.dtype).removeprefix("torch."), list(tensor.shape)) for suffix, tensor in stored.items()
    }
    coding = code(stated, facts, [_rows(stored), columns])
    if coding is None:
        raise ValueError(f"no codes among {sorted(stored)}")
    return torch.from_numpy(_values(coding, stored))


def _rows(stored: dict[str, torch.Tensor]) -> int:
    """Return the outputs of a matrix, by its codes."""
    if "qweight" in stored:
        return stored["scales"].shape[1]
    return stored["weight_packed" if "weight_packed" in stored else "weight"].shape[0]


def _scaled(weight: torch.Tensor, scales: torch.Tensor | None) -> torch.Tensor:
    """Multiply float8 values by scales for the tensor, its rows, or blocks of it, in float32."""
    if scales is None:
        return weight
    grid = scales.float() if scales.ndim == 2 else scales.float().reshape(-1, 1)
    if grid.numel() == 1 or grid.shape[1] == 1 and len(grid) == len(weight):
        return weight.float() * grid
    high, wide = (-(-size // count) for size, count in zip(weight.shape, grid.shape, strict=True))
    spread = grid.repeat_interleave(high, 0)[: len(weight)].repeat_interleave(wide, 1)[:, : weight.shape[1]]
    return weight.float() * spread


def _values(coding: Coding, stored: dict[str, torch.Tensor]) -> Any:
    """Return float32 [rows, columns]."""
    raw = {
        role: stored[one.suffix].contiguous().reshape(-1).view(torch.uint8).numpy()
        for role, one in coding.inputs.items()
    }
    return unpack_rows(coding.packing, coding.pack(raw), range(coding.packing.rows))

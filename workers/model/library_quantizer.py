"""transformers' quantizers, set to dequantise: they name the tensors of a quantised checkpoint and their types.

Block FP8 goes through a quantizer of our own. The library's needs `accelerate`, refuses matrices whose last block is
smaller (as DeepSeek-V3's `kv_a_proj_with_mqa`), and casts no tensor without a scale.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import FineGrainedFP8Config, PreTrainedConfig, PreTrainedModel
from transformers.integrations.finegrained_fp8 import Fp8Dequantize
from transformers.quantizers import auto
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizer_finegrained_fp8 import FineGrainedFP8HfQuantizer

from ...errors import CheckpointError
from ..checkpoint.quantisation_config import CODED_METHODS, block_of
from .dtypes import loaded_dtypes
from .quantizers.coded import CODED, CodedConfig, CodedQuantizer

_BLOCK_FP8 = "expertflow_fp8"
_OWN_METHODS = {"fp8": _BLOCK_FP8, "mxfp8": _BLOCK_FP8}


def set_dequantising(config: PreTrainedConfig, stated: dict[str, Any] | None) -> None:
    """Make `from_pretrained` dequantise the checkpoint of this configuration; `stated` is its `quantization_config`."""
    if not stated:
        return
    _register()
    method = stated.get("quant_method", "")
    if method in CODED_METHODS:
        config.quantization_config = {**stated, "quant_method": CODED, "coded_method": method}
        return
    config.quantization_config = {**stated, "quant_method": _OWN_METHODS.get(method, method), "dequantize": True}


def quantizer_of(config: PreTrainedConfig) -> HfQuantizer | None:
    """Return the quantizer of a configuration prepared by `set_dequantising`; None if it is not quantised.

    Raises CheckpointError for a `quantization_config` that cannot be read.
    """
    stated = getattr(config, "quantization_config", None)
    if stated is None:
        return None
    try:
        return auto.AutoHfQuantizer.from_config(dict(stated), pre_quantized=True)
    except (ValueError, TypeError, AttributeError) as error:
        what = f"its quantization_config cannot be read ({error})"
        raise CheckpointError(what, "config.json", "Download the checkpoint again") from error


def _register() -> None:
    if CODED not in auto.AUTO_QUANTIZER_MAPPING:
        auto.register_quantizer(CODED)(TypedCodedQuantizer)
        auto.register_quantization_config(CODED)(CodedConfig)
    if _BLOCK_FP8 not in auto.AUTO_QUANTIZER_MAPPING:
        auto.register_quantizer(_BLOCK_FP8)(BlockFp8Quantizer)
        auto.register_quantization_config(_BLOCK_FP8)(FineGrainedFP8Config)


class TypedCodedQuantizer(CodedQuantizer):
    """CodedQuantizer that knows the type of each tensor after loading."""

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> None:
        self.dtypes = loaded_dtypes(model, self._dtype)


class BlockFp8Quantizer(FineGrainedFP8HfQuantizer):
    """Quantizer of block FP8 that also loads checkpoints which the library's cannot."""

    dtypes: dict[str, torch.dtype]
    """Type of each tensor after loading."""

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        """Accept any environment: nothing is needed to dequantise."""

    def update_dtype(self, dtype: torch.dtype) -> torch.dtype:
        self._dtype = dtype
        return dtype

    def get_load_operations(self) -> dict[str, Any]:
        return {"dequantize": BlockFp8Dequantize}

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> None:
        super()._process_model_before_weight_loading(model, **kwargs)
        self.dtypes = loaded_dtypes(model, self._dtype)


class BlockFp8Dequantize(Fp8Dequantize):
    """Operation that multiplies weights by their scales in float32, then casts, as the library does."""

    def convert(
        self,
        input_dict: dict[str, Any],
        full_layer_name: str | None = None,
        model: torch.nn.Module | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        converted = super().convert(input_dict, full_layer_name, model, **kwargs)
        dtype = self.hf_quantizer.dtypes.get(full_layer_name)
        return {name: _cast(value, dtype) for name, value in converted.items()}

    def _get_target_dtype(self, model: torch.nn.Module | None, full_layer_name: str | None) -> torch.dtype | None:
        return self.hf_quantizer.dtypes.get(full_layer_name)

    def _dequantize_one(
        self, quantized: torch.Tensor, scales: torch.Tensor, output_dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        rows, columns = quantized.shape[-2:]
        if scales.ndim < 2 or quantized.dtype == torch.int8:
            return super()._dequantize_one(quantized, scales, output_dtype)
        stated = self.hf_quantizer.quantization_config.weight_block_size
        grid = list(scales.shape[-2:])
        block = block_of("a matrix", [rows, columns], grid, list(stated) if stated else None)
        padded = [count * size for count, size in zip(grid, block, strict=True)]
        if padded == [rows, columns]:
            return super()._dequantize_one(quantized, scales, output_dtype)
        whole = quantized.new_zeros([*quantized.shape[:-2], *padded])
        whole[..., :rows, :columns] = quantized
        return super()._dequantize_one(whole, scales, output_dtype)[..., :rows, :columns].contiguous()


def _cast(value: Any, dtype: torch.dtype | None) -> Any:
    if isinstance(value, list):
        return [_cast(item, dtype) for item in value]
    return value if dtype is None else value.to(dtype)

"""Rounds a matrix to integer codes with one scale for each group of a row.

Symmetric, as compressed-tensors' `pack-quantized` stores it: value = code * scale, codes from -2^(bits-1) to
2^(bits-1) - 1. Of several scales a group takes the one with the least squared error.
"""

from __future__ import annotations

import torch
from torch import Tensor

DIVISORS = {4: (7.0, 7.5, 8.0, 8.5, 9.0, 9.5, 10.0), 8: (127.0, 127.5, 128.0)}
"""Bits -> the scales that are tried, as the largest magnitude of a group over each. A larger one clips."""
ROWS_AT_ONCE = 1 << 22
"""Values that are rounded together: their copies in float32 stay below 100 MB."""


def quantise(weight: Tensor, bits: int, group: int) -> tuple[Tensor, Tensor]:
    """Round `weight` [out, in] to codes int8 [out, in] and scales [out, in / group] of the weight's dtype.

    `in` must be a multiple of `group`, and all values finite.
    """
    rows = max(1, ROWS_AT_ONCE // weight.shape[1])
    parts = [_quantise_rows(part, bits, group) for part in weight.split(rows)]
    return torch.cat([codes for codes, _ in parts]), torch.cat([scales for _, scales in parts])


def dequantise(codes: Tensor, scales: Tensor) -> Tensor:
    """Return the values of codes [out, in] with scales [out, groups]: [out, in] in the dtype of the scales.

    The product is rounded once, as compressed-tensors does it.
    """
    grouped = codes.view(len(codes), scales.shape[1], -1).to(scales.dtype)
    return (grouped * scales[:, :, None]).view(codes.shape)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack codes int8 [out, in] into int32 [out, words]: the first code of a word in its lowest bits.

    Stored without sign (code + 2^(bits-1)); the end of a row is filled up with zeros.
    """
    per_word = 32 // bits
    stored = codes.to(torch.int32) + (1 << (bits - 1))
    padded = torch.nn.functional.pad(stored, (0, -stored.shape[1] % per_word))
    words = padded.view(len(codes), -1, per_word) << (torch.arange(per_word, dtype=torch.int32) * bits)
    return words.sum(-1, dtype=torch.int32)


def squared_errors(weight: Tensor, codes: Tensor, scales: Tensor) -> tuple[float, float]:
    """Return the sum of squared errors of the rounded matrix, and the sum of squares of `weight` [out, in]."""
    exact = weight.float()
    return float((dequantise(codes, scales).float() - exact).square().sum()), float(exact.square().sum())


def _quantise_rows(weight: Tensor, bits: int, group: int) -> tuple[Tensor, Tensor]:
    values = weight.float().view(len(weight), -1, group)
    largest = values.abs().amax(-1, keepdim=True)
    codes, scales, least = torch.zeros_like(values), torch.ones_like(largest), torch.full_like(largest, torch.inf)
    for divisor in DIVISORS[bits]:
        tried = _as_scales(largest / divisor, weight.dtype)
        rounded = _codes(values, tried, bits)
        error = (rounded * tried - values).square().sum(-1, keepdim=True)
        better = error < least
        least = torch.where(better, error, least)
        codes, scales = torch.where(better, rounded, codes), torch.where(better, tried, scales)
    return codes.to(torch.int8).view(weight.shape), scales.squeeze(-1).to(weight.dtype)


def _as_scales(scales: Tensor, dtype: torch.dtype) -> Tensor:
    """Return scales as they are stored; 1 for groups of zeros (or so small that their scale is zero)."""
    stored = scales.to(dtype).float()
    return torch.where(stored == 0, 1.0, stored)


def _codes(values: Tensor, scales: Tensor, bits: int) -> Tensor:
    half = 1 << (bits - 1)
    return (values / scales).round().clamp(-half, half - 1)

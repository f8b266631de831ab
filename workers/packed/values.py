"""Values of codes: e4m3, e2m1. numpy only."""

from __future__ import annotations

import numpy as np

FLOAT4_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
"""Values of the codes of e2m1."""


def float8_values() -> np.ndarray:
    """Return float32 [256], the value of each byte as e4m3 without infinities (OCP FP8): bias 7, all ones are NaN."""
    codes = np.arange(128)
    exponents, fractions = codes >> 3, codes & 7
    significands = np.where(exponents > 0, fractions + 8, fractions)
    positive = np.ldexp(significands, np.maximum(exponents, 1) - 10).astype(np.float32)
    positive[127] = np.nan
    return np.concatenate([positive, -positive])


def float4_pairs() -> np.ndarray:
    """Return float32 [256, 2], the two e2m1 values of each byte, low bits first."""
    values = np.array(FLOAT4_VALUES, dtype=np.float32)
    codes = np.arange(256)
    return np.stack([values[codes & 15], values[codes >> 4]], axis=1)

"""Blocks of every GGUF type become the values that the `gguf` package gives, bit for bit, whatever bytes they hold."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from expertflow.workers.checkpoint.gguf.block_types import BLOCK_TYPES, OTHERS, PLAIN, TYPES
from expertflow.workers.checkpoint.gguf.dequantise import dequantise, dequantised_steps

BLOCKS = 700
"""More than one step has, for blocks of 256 values."""


def reference(raw: np.ndarray, type_name: str) -> np.ndarray:
    own = BLOCK_TYPES[type_name]
    with np.errstate(all="ignore"):
        return gguf.quants.dequantize(raw.reshape(-1, own.size_bytes), gguf.GGMLQuantizationType[type_name]).reshape(-1)


@pytest.mark.parametrize("type_name", BLOCK_TYPES)
def test_any_bytes_have_the_values_of_the_package(type_name: str):
    """Random bytes have subnormal, infinite and NaN scales among them."""
    own = BLOCK_TYPES[type_name]
    raw = np.random.default_rng(3).integers(0, 256, BLOCKS * own.size_bytes, dtype=np.uint8)
    ours, theirs = dequantise(raw, type_name), reference(raw, type_name)
    assert len(ours) == BLOCKS * own.values
    np.testing.assert_array_equal(np.isnan(ours), np.isnan(theirs))
    kept = ~np.isnan(theirs)
    np.testing.assert_array_equal(ours[kept].view(np.uint32), theirs[kept].view(np.uint32))


@pytest.mark.parametrize("type_name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "MXFP4"])
def test_quantised_weights_come_back(type_name: str):
    weights = np.random.default_rng(4).standard_normal((5, 96)).astype(np.float32)
    raw = gguf.quants.quantize(weights, gguf.GGMLQuantizationType[type_name])
    values = dequantise(raw.reshape(-1), type_name)
    np.testing.assert_array_equal(values.view(np.uint32), reference(raw, type_name).view(np.uint32))
    assert np.corrcoef(values, weights.reshape(-1))[0, 1] > 0.98


def test_steps_cover_all_values_once():
    raw = np.zeros(5000 * BLOCK_TYPES["Q4_0"].size_bytes, dtype=np.uint8)
    places = [place for place, _ in dequantised_steps(raw, "Q4_0")]
    assert len(places) > 2
    assert [place.start for place in places] == [0, *(place.stop for place in places[:-1])]
    assert places[-1].stop == 5000 * 32


def test_types_are_those_of_the_package():
    for number, own in TYPES.items():
        kind = gguf.GGMLQuantizationType(number)
        assert (kind.name, gguf.GGML_QUANT_SIZES[kind]) == (own.name, (own.values, own.size_bytes))
    for number, name in OTHERS.items():
        assert gguf.GGMLQuantizationType(number).name == name
    assert set(BLOCK_TYPES) | set(PLAIN) == {own.name for own in TYPES.values()}

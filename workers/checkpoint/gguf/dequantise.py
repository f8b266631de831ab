"""Values of GGUF's quantised blocks, with numpy: bit for bit those of the `gguf` package, in float32.

Products have one rounding each, in the order of that package: `scale * code`, or `scale * code - minimum`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from .block_types import BLOCK_TYPES

_VALUES_AT_ONCE = 1 << 16
"""Values a step, so that these stay in a core's cache from one operation to the next."""
_IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
_E2M1_DOUBLED = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)


def dequantised_steps(raw: np.ndarray, type_name: str) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield the values of whole blocks, `raw` uint8 [bytes], step by step: where they belong, and float32 [values].

    An infinite or NaN scale gives infinite or NaN values, without a warning.
    """
    own, values = BLOCK_TYPES[type_name], _VALUES[type_name]
    blocks = raw.reshape(-1, own.size_bytes)
    step = _VALUES_AT_ONCE // own.values
    for at in range(0, len(blocks), step):
        with np.errstate(over="ignore", invalid="ignore"):
            found = values(blocks[at : at + step]).reshape(-1)
        yield slice(at * own.values, at * own.values + len(found)), found


def dequantise(raw: np.ndarray, type_name: str) -> np.ndarray:
    """Return the values of whole blocks, `raw` uint8 [bytes], as float32 [values]."""
    own = BLOCK_TYPES[type_name]
    out = np.empty(raw.size // own.size_bytes * own.values, dtype=np.float32)
    for place, values in dequantised_steps(raw, type_name):
        out[place] = values
    return out


def _half(blocks: np.ndarray, at: int) -> np.ndarray:
    """Return the float16 at byte `at` of every block, as float32 [blocks, 1]."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view(np.float16).astype(np.float32)


def _nibbles(stored: np.ndarray) -> np.ndarray:
    """Return the 4-bit codes of uint8 [..., bytes] as uint8 [..., 2, bytes]: all low ones, then all high ones."""
    codes = np.empty((*stored.shape[:-1], 2, stored.shape[-1]), dtype=np.uint8)
    np.bitwise_and(stored, 15, out=codes[..., 0, :])
    np.right_shift(stored, 4, out=codes[..., 1, :])
    return codes


def _lookup(blocks: np.ndarray, at: int, table: np.ndarray) -> np.ndarray:
    """Return float32 [blocks, 32], the entries of `table` for the 4-bit codes from byte `at` on."""
    return np.take(table, _nibbles(blocks[:, at : at + 16]).reshape(len(blocks), 32), mode="clip")


def _fifth_bits(blocks: np.ndarray, at: int) -> np.ndarray:
    """Return the bits of the four bytes at `at` of every block as uint8 [blocks, 32], 0 or 16."""
    bits = np.unpackbits(np.ascontiguousarray(blocks[:, at : at + 4]), axis=1, bitorder="little")
    return np.left_shift(bits, 4, out=bits)


def _five_bit_codes(blocks: np.ndarray, bits_at: int) -> np.ndarray:
    codes = _nibbles(blocks[:, bits_at + 4 :]).reshape(len(blocks), 32)
    return np.bitwise_or(codes, _fifth_bits(blocks, bits_at), out=codes)


def _q4_0(blocks: np.ndarray) -> np.ndarray:
    values = np.subtract(_nibbles(blocks[:, 2:]).reshape(len(blocks), 32), np.float32(8), dtype=np.float32)
    return np.multiply(values, _half(blocks, 0), out=values)


def _q4_1(blocks: np.ndarray) -> np.ndarray:
    values = np.multiply(_nibbles(blocks[:, 4:]).reshape(len(blocks), 32), _half(blocks, 0), dtype=np.float32)
    return np.add(values, _half(blocks, 2), out=values)


def _q5_0(blocks: np.ndarray) -> np.ndarray:
    values = np.subtract(_five_bit_codes(blocks, 2), np.float32(16), dtype=np.float32)
    return np.multiply(values, _half(blocks, 0), out=values)


def _q5_1(blocks: np.ndarray) -> np.ndarray:
    values = np.multiply(_five_bit_codes(blocks, 4), _half(blocks, 0), dtype=np.float32)
    return np.add(values, _half(blocks, 2), out=values)


def _q8_0(blocks: np.ndarray) -> np.ndarray:
    return np.multiply(blocks[:, 2:].view(np.int8), _half(blocks, 0), dtype=np.float32)


def _iq4_nl(blocks: np.ndarray) -> np.ndarray:
    values = _lookup(blocks, 2, np.array(_IQ4, dtype=np.float32))
    return np.multiply(values, _half(blocks, 0), out=values)


def _mxfp4(blocks: np.ndarray) -> np.ndarray:
    """Multiply doubled e2m1 values by half the power of two that the first byte of a block is the exponent of."""
    exponents = np.arange(256, dtype=np.uint32)
    scales = np.where(exponents < 2, 0x00200000 << exponents, (exponents - 1) << 23).astype(np.uint32)
    values = _lookup(blocks, 1, np.array(_E2M1_DOUBLED, dtype=np.float32))
    return np.multiply(values, scales.view(np.float32)[blocks[:, :1]], out=values)


# Blocks of 256 values, with scales of their own for each 16 or 32


def _scales_and_minima(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return float32 [blocks, 8, 1] each: scale and minimum of each 32 values of Q4_K and Q5_K.

    Twelve bytes hold eight scales and eight minima of six bits: the low six bits of the first four of each are whole
    bytes, the others are four bits of the last four bytes and the upper two of the former.
    """
    first, second, last = (blocks[:, at : at + 4] for at in (4, 8, 12))
    scales = np.concatenate([first & 63, (last & 15) | ((first >> 2) & 48)], axis=1)
    minima = np.concatenate([second & 63, (last >> 4) | ((second >> 2) & 48)], axis=1)
    factors, offsets = _half(blocks, 0) * scales.astype(np.float32), _half(blocks, 2) * minima.astype(np.float32)
    return factors[..., None], offsets[..., None]


def _scaled(codes: np.ndarray, blocks: np.ndarray) -> np.ndarray:
    """Return the values of codes uint8 [blocks, 8, 32] of Q4_K or Q5_K."""
    scales, minima = _scales_and_minima(blocks)
    values = np.multiply(codes, scales, dtype=np.float32)
    return np.subtract(values, minima, out=values)


def _q4_k(blocks: np.ndarray) -> np.ndarray:
    return _scaled(_nibbles(blocks[:, 16:].reshape(-1, 4, 32)).reshape(-1, 8, 32), blocks)


def _q5_k(blocks: np.ndarray) -> np.ndarray:
    codes = _nibbles(blocks[:, 48:].reshape(-1, 4, 32)).reshape(-1, 8, 32)
    shifts = np.arange(8, dtype=np.uint8)[:, None]
    codes |= ((blocks[:, None, 16:48] >> shifts) & 1) << 4
    return _scaled(codes, blocks)


def _q6_k(blocks: np.ndarray) -> np.ndarray:
    codes = _nibbles(blocks[:, :128].reshape(-1, 2, 64)).reshape(-1, 2, 4, 32)
    shifts = np.array([0, 2, 4, 6], dtype=np.uint8)[:, None]
    codes |= ((blocks[:, 128:192].reshape(-1, 2, 1, 32) >> shifts) & 3) << 4
    signed = codes.reshape(-1, 16, 16).view(np.int8) - np.int8(32)
    scales = _half(blocks, 208) * blocks[:, 192:208].view(np.int8).astype(np.float32)
    return np.multiply(signed, scales[..., None], dtype=np.float32)


def _iq4_xs(blocks: np.ndarray) -> np.ndarray:
    """Scale each 32 values by six bits: four of a nibble, two of the sixteen at byte 2."""
    upper = np.ascontiguousarray(blocks[:, 2:4]).view(np.uint16)
    high = ((upper >> np.arange(0, 16, 2, dtype=np.uint16)) & 3).astype(np.uint8)
    low = np.stack([blocks[:, 4:8] & 15, blocks[:, 4:8] >> 4], axis=2).reshape(-1, 8)
    scales = _half(blocks, 0) * ((low | (high << 4)).view(np.int8) - np.int8(32)).astype(np.float32)
    codes = _nibbles(blocks[:, 8:].reshape(-1, 8, 16)).reshape(-1, 8, 32)
    values = np.take(np.array(_IQ4, dtype=np.float32), codes, mode="clip")
    return np.multiply(values, scales[..., None], out=values)


_VALUES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "IQ4_NL": _iq4_nl,
    "IQ4_XS": _iq4_xs,
    "MXFP4": _mxfp4,
}
"""Values of blocks, uint8 [blocks, bytes], as float32, [blocks, ...], by type."""

"""Re-packing: words of codes in the layout of a published format, turned into the layout of `Packing`. numpy only.

All take the stored tensor and the shape of the part in a slot, [rows, bytes] of codes or [row groups, column groups] of
zero points, and return that part.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
"""Nibble of a word that holds the column of each place (AutoAWQ's `AWQ_REVERSE_ORDER`)."""

Repack = Callable[[np.ndarray, list[int]], np.ndarray]


def nibbles(words: np.ndarray) -> np.ndarray:
    """Return the codes of int32 words [rows, words], low bits first: uint8 [rows, 8 * words]."""
    held = np.ascontiguousarray(words).view(np.uint8)
    return np.stack([held & 15, held >> 4], axis=-1).reshape(len(words), -1)


def _pair(codes: np.ndarray) -> np.ndarray:
    """Return uint8 codes [rows, columns] two a byte, the earlier column in the low bits."""
    return codes[:, 0::2] | codes[:, 1::2] << 4


def _cut(words: np.ndarray, shape: list[int]) -> np.ndarray:
    """Leave out the padding behind the codes of each row."""
    return np.ascontiguousarray(words).view(np.uint8)[:, : shape[1]].copy()


def _cut_signed(words: np.ndarray, shape: list[int]) -> np.ndarray:
    """Do the same for bytes above 128, as signed ones."""
    return _cut(words, shape) ^ 0x80


def _zeros_of_rows(words: np.ndarray, shape: list[int]) -> np.ndarray:
    """Return zero points that are packed along the rows, [rows / 8, groups]."""
    return np.ascontiguousarray(nibbles(words.T)[:, : shape[0]].T)


def _byte_zeros_of_rows(words: np.ndarray, shape: list[int]) -> np.ndarray:
    """Return zero points of 8 bits that are packed along the rows, [rows / 4, groups], as signed ones."""
    held = np.ascontiguousarray(words.T).view(np.uint8)[:, : shape[0]]
    return np.ascontiguousarray((held ^ 0x80).T).view(np.int8)


def _transpose(values: np.ndarray, shape: list[int]) -> np.ndarray:
    return np.ascontiguousarray(values.T)


def _gptq_codes(words: np.ndarray, shape: list[int]) -> np.ndarray:
    """Turn words of eight inputs, [inputs / 8, outputs]."""
    return np.ascontiguousarray(words.T).view(np.uint8)[:, : shape[1]].copy()


def _gptq_zeros(words: np.ndarray, shape: list[int]) -> np.ndarray:
    """Turn words of eight outputs, [groups, outputs / 8]."""
    return np.ascontiguousarray(nibbles(words)[:, : shape[0]].T)


def _gptq_zeros_less_one(words: np.ndarray, shape: list[int]) -> np.ndarray:
    """Do the same for zero points that are stored less one, in four bits (the first version of the format)."""
    return (_gptq_zeros(words, shape) + np.uint8(1)) & np.uint8(15)


def _awq_codes(words: np.ndarray, shape: list[int]) -> np.ndarray:
    """Turn words of eight outputs, [inputs, outputs / 8]."""
    return _pair(np.ascontiguousarray(_awq(words)[:, : shape[0]].T))


def _awq_zeros(words: np.ndarray, shape: list[int]) -> np.ndarray:
    return np.ascontiguousarray(_awq(words)[:, : shape[0]].T)


def _awq(words: np.ndarray) -> np.ndarray:
    held = nibbles(words).reshape(len(words), -1, 8)
    return held[..., AWQ_ORDER].reshape(len(words), -1)


REPACK: dict[str, Repack] = {
    "cut": _cut,
    "cut signed": _cut_signed,
    "zeros of rows": _zeros_of_rows,
    "byte zeros of rows": _byte_zeros_of_rows,
    "transpose": _transpose,
    "gptq codes": _gptq_codes,
    "gptq zeros": _gptq_zeros,
    "gptq zeros less one": _gptq_zeros_less_one,
    "awq codes": _awq_codes,
    "awq zeros": _awq_zeros,
}

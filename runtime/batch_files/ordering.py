"""The order of lines: those with a common prefix follow each other, and so do those that use the same experts.

Lines that run together then load fewer experts, and a prefix is computed once. Pure: texts and vectors in, rows out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .request_line import digest_of

PREFIX_CHARACTERS = (256, 1024, 4096)
"""Lengths of text at which lines are compared. Shorter prefixes are cheap to compute again."""
WINDOW_LINES = 16_384
"""Lines that are ordered together: the look-ahead, which bounds memory."""
DIRECTIONS = 16
"""Directions in which lines are compared: those in which they differ most."""
LEAF_LINES = 8
"""Lines that stay in the order of the file: a group that is not halved any more."""


@dataclass(frozen=True)
class LineFeatures:
    """Features by which lines are ordered."""

    prefixes: np.ndarray
    """uint64 [lines, prefix lengths]: digest of the text up to each length; 0: the text is shorter."""
    vectors: np.ndarray
    """float32 [lines, width]: forecast use of experts; lines that are near each other use the same ones."""


def prefix_digests(text: str) -> list[int]:
    """Return a digest of the text up to each of `PREFIX_CHARACTERS`, 0 where the text is shorter."""
    return [digest_of(text[:length].encode()) | 1 if len(text) >= length else 0 for length in PREFIX_CHARACTERS]


def order_lines(features: LineFeatures) -> np.ndarray:
    """Return int64 [lines]: the indices of lines in the order in which they should run."""
    lines = np.arange(len(features.vectors))
    return _order(lines, features, 0) if len(lines) else lines


def _order(lines: np.ndarray, features: LineFeatures, level: int) -> np.ndarray:
    """Order lines that share the prefix of `level` - 1. A group with a common prefix is one block, in order inside."""
    if level == features.prefixes.shape[1]:
        return lines[order_vectors(features.vectors[lines])]
    blocks = _blocks(lines, features.prefixes[lines, level])
    if len(blocks) == 1:
        return _order(lines, features, level + 1)
    means = np.stack([features.vectors[block].mean(axis=0) for block in blocks])
    inner = [_order(block, features, level + 1) if len(block) > 1 else block for block in blocks]
    return np.concatenate([inner[place] for place in order_vectors(means).tolist()])


def _blocks(lines: np.ndarray, digests: np.ndarray) -> list[np.ndarray]:
    """Return lines with an equal digest as one block, others as blocks of one, by their first line."""
    keys = np.where(digests == 0, np.uint64(0), digests)
    alone = keys == 0
    _, group = np.unique(keys, return_inverse=True)
    group[alone] = len(lines) + np.arange(alone.sum())
    order = np.argsort(group, kind="stable")
    bounds = np.flatnonzero(np.diff(group[order])) + 1
    blocks = [lines[part] for part in np.split(order, bounds)] if len(lines) else []
    return sorted(blocks, key=lambda block: int(block[0]))


def order_vectors(vectors: np.ndarray) -> np.ndarray:
    """Return int64 [n]: an order in which vectors, float32 [n, width], that are near each other are neighbours.

    Halves the vectors at the median of their widest direction, then each half. The second half begins at the end that
    is nearer to the first.
    """
    return _halve(np.arange(len(vectors)), project(vectors), None)


def project(vectors: np.ndarray) -> np.ndarray:
    """Return float32 [n, up to DIRECTIONS]: vectors [n, width] along the directions in which they differ most."""
    centred = vectors - vectors.mean(axis=0) if len(vectors) else vectors
    if len(centred) < centred.shape[1]:
        left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
        return (left * sizes)[:, :DIRECTIONS]
    return centred @ np.linalg.eigh(centred.T @ centred)[1][:, ::-1][:, :DIRECTIONS]


def _halve(lines: np.ndarray, vectors: np.ndarray, before: np.ndarray | None) -> np.ndarray:
    if len(lines) <= LEAF_LINES:
        return lines
    along = _widest(vectors[lines])
    ranked = lines[np.argsort(along, kind="stable")]
    first, second = np.sort(ranked[: len(lines) // 2]), np.sort(ranked[len(lines) // 2 :])
    if before is not None and _distance(vectors[second], before) < _distance(vectors[first], before):
        first, second = second, first
    head = _halve(first, vectors, before)
    return np.concatenate([head, _halve(second, vectors, vectors[head[-LEAF_LINES:]].mean(axis=0))])


def _widest(vectors: np.ndarray) -> np.ndarray:
    """Return float32 [n]: vectors [n, width] along the direction in which they differ most."""
    centred = vectors - vectors.mean(axis=0)
    return centred @ np.linalg.eigh(centred.T @ centred)[1][:, -1]


def _distance(vectors: np.ndarray, other: np.ndarray) -> float:
    return float(np.linalg.norm(vectors.mean(axis=0) - other))


def deal_rows(rows: np.ndarray, parts: int) -> np.ndarray:
    """Return rows, int64 [n], dealt in turn from as many parts: so replicas get work of different kinds at once.

    Neighbours of the given order, which are alike, are `parts` apart then.
    """
    if parts < 2 or not len(rows):
        return rows
    cut = np.array_split(rows, parts)
    dealt = [part[turn] for turn in range(len(cut[0])) for part in cut if turn < len(part)]
    return np.array(dealt, dtype=rows.dtype)


def windows(rows: np.ndarray, size: int = WINDOW_LINES) -> Sequence[np.ndarray]:
    """Return rows cut into windows of at most `size`."""
    return [rows[start : start + size] for start in range(0, len(rows), size)]

"""Balanced K-means over routes (ExpertFlow paper, §3.3).

The paper's released code reads the similarities of the wrong row in its balancing step; this one does not."""

from __future__ import annotations

import numpy as np

from .objective import to_probabilities

MAX_ITERATIONS = 30


def kmeans(routes: np.ndarray, groups: np.ndarray, seed: int = 0) -> np.ndarray:
    """Return int64 [rows]: groups of similar rows, of the same sizes as in `groups` [rows].

    Similarity is 1 − Hamming distance / (layers · experts), of probabilities its expectation. Each group has a row as
    centroid. Rows go to the most similar centroid whose group has room. The member with the highest mean similarity to
    the others is the next centroid, until nothing changes. `seed` draws the first centroids. Groups of one size are
    numbered so that few rows change theirs. `routes` is [rows, layers, experts], see `to_probabilities`.
    """
    numbers, sizes = np.unique(groups, return_counts=True)
    alike = similarities(routes)
    centroids = np.random.default_rng(seed).choice(len(alike), len(sizes), replace=False)
    clusters = _assign(alike[:, centroids], sizes)
    for _ in range(MAX_ITERATIONS):
        centroids = np.array([_centroid(alike, np.flatnonzero(clusters == cluster)) for cluster in range(len(sizes))])
        before, clusters = clusters, _assign(alike[:, centroids], sizes)
        if (clusters == before).all():
            break
    return numbers[_keep_numbers(clusters, np.searchsorted(numbers, groups), sizes)]


def similarities(routes: np.ndarray) -> np.ndarray:
    """Return float32 [rows, rows] from 0 to 1, the diagonal 1, of `routes` [rows, layers, experts]."""
    used = to_probabilities(routes)
    sizes = used.sum(axis=1)
    alike = 1 - (sizes[:, None] + sizes - 2 * used @ used.T) / used.shape[1]
    np.fill_diagonal(alike, 1)
    return alike


def _assign(alike: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return clusters int64 [rows] of these sizes; similarities to centroids [rows, clusters] go from the highest."""
    clusters = np.full(len(alike), -1)
    room = sizes.copy()
    for index in np.argsort(-alike, axis=None, kind="stable").tolist():
        row, cluster = divmod(index, len(sizes))
        if clusters[row] < 0 and room[cluster]:
            clusters[row] = cluster
            room[cluster] -= 1
    return clusters


def _centroid(alike: np.ndarray, members: np.ndarray) -> int:
    return int(members[alike[np.ix_(members, members)].mean(axis=1).argmax()])


def _keep_numbers(clusters: np.ndarray, present: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return the clusters, each numbered as the present group of its size that holds most of its rows."""
    shared = np.zeros((len(sizes), len(sizes)), dtype=np.int64)
    np.add.at(shared, (clusters, present), 1)
    numbers = np.full(len(sizes), -1)
    for index in np.argsort(-shared, axis=None, kind="stable").tolist():
        cluster, number = divmod(index, len(sizes))
        if numbers[cluster] < 0 and number not in numbers and sizes[cluster] == sizes[number]:
            numbers[cluster] = number
    return numbers[clusters]

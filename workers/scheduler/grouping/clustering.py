"""The paper's balanced K-means over routes (§3.3), without the slip of its release, whose balancing step reads the
similarities of the wrong row."""

from __future__ import annotations

import numpy as np

from .objective import probabilities_of

MAX_ITERATIONS = 30


def kmeans(routes: np.ndarray, groups: np.ndarray, seed: int = 0) -> np.ndarray:
    """int64 [rows]: groups of the sizes that `groups` [rows] has, whose rows are alike.

    Similarity is 1 − Hamming distance / (layers · experts), of probabilities its expectation. Each group has a row as
    centroid: rows go to the most similar centroid whose group has room, and the member with the highest mean similarity
    to the others is the next centroid, until nothing changes. The first centroids are drawn by `seed`. Groups of one
    size are named so that few rows leave theirs. `routes` is [rows, layers, experts], see `activated`.
    """
    numbers, sizes = np.unique(groups, return_counts=True)
    alike = similarities(routes)
    centroids = np.random.default_rng(seed).choice(len(alike), len(sizes), replace=False)
    clusters = _assign(alike[:, centroids], sizes)
    for _ in range(MAX_ITERATIONS):
        centroids = np.array([_centroid(alike, np.flatnonzero(clusters == each)) for each in range(len(sizes))])
        before, clusters = clusters, _assign(alike[:, centroids], sizes)
        if (clusters == before).all():
            break
    return numbers[_renamed(clusters, np.searchsorted(numbers, groups), sizes)]


def similarities(routes: np.ndarray) -> np.ndarray:
    """float32 [rows, rows] from 0 to 1; a row is like itself."""
    used = probabilities_of(routes)
    sizes = used.sum(axis=1)
    alike = 1 - (sizes[:, None] + sizes - 2 * used @ used.T) / used.shape[1]
    np.fill_diagonal(alike, 1)
    return alike


def _assign(alike: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Clusters [rows] of these sizes from similarities to the centroids [rows, clusters], the most similar first."""
    clusters = np.full(len(alike), -1)
    room = sizes.copy()
    for place in np.argsort(-alike, axis=None, kind="stable").tolist():
        row, cluster = divmod(place, len(sizes))
        if clusters[row] < 0 and room[cluster]:
            clusters[row] = cluster
            room[cluster] -= 1
    return clusters


def _centroid(alike: np.ndarray, members: np.ndarray) -> int:
    return int(members[alike[np.ix_(members, members)].mean(axis=1).argmax()])


def _renamed(clusters: np.ndarray, present: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The same clusters under the names, among those of their size, that most of their rows bear at present."""
    shared = np.zeros((len(sizes), len(sizes)), dtype=np.int64)
    np.add.at(shared, (clusters, present), 1)
    names = np.full(len(sizes), -1)
    for place in np.argsort(-shared, axis=None, kind="stable").tolist():
        cluster, name = divmod(place, len(sizes))
        if names[cluster] < 0 and name not in names and sizes[cluster] == sizes[name]:
            names[cluster] = name
    return names[clusters]

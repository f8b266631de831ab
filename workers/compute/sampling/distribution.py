"""The distribution that a sampled token is drawn from, and the draw.

Temperature, top-k, top-p and min-p have the order and meaning of transformers' logits warpers. The distribution is
float64 on the CPU; its one random number is a counter-based function of (seed, output index) alone.
"""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

from ....ipc.messages import Sampling
from .failure import RowFailed


def distribution(logits: Tensor, sampling: Sampling) -> np.ndarray:
    """Return probabilities, float64 [vocabulary], after temperature, top-k, top-p and min-p.

    Filtered tokens have exactly 0. Ties at the k-th value all stay, as in transformers; ties at the edge of top-p are
    removed in order of token id. Raises RowFailed for logits without a finite maximum, and for a temperature that is
    not a positive number.
    """
    scores = _scaled(logits, sampling.temperature)
    if 0 < sampling.top_k < len(scores):
        scores = _keep_top_k(scores, sampling.top_k)
    if sampling.top_p < 1:
        scores = _keep_top_p(scores, sampling.top_p)
    if sampling.min_p > 0:
        scores = _keep_min_p(scores, sampling.min_p)
    return _softmax(scores)


def uniform(seed: int, output_index: int) -> float:
    """Return a number in [0, 1) that depends on the arguments alone (Philox, Salmon et al. 2011, keyed by both)."""
    key = np.array([seed % 2**64, output_index], dtype=np.uint64)
    return float(np.random.Generator(np.random.Philox(key=key)).random())


def draw(probabilities: np.ndarray, number: float) -> int:
    """Invert the cumulative distribution in order of token ids; never return a token of probability 0."""
    cumulative = np.cumsum(probabilities)
    token = int(np.searchsorted(cumulative, number * cumulative[-1], side="right"))
    return min(token, int(np.flatnonzero(probabilities)[-1]))


def _scaled(logits: Tensor, temperature: float) -> np.ndarray:
    if not (temperature > 0 and math.isfinite(temperature)):
        raise RowFailed(f"temperature {temperature} is not a positive number", "sampling", "Give 0 or more")
    scores = logits.double().cpu().numpy()
    best = scores.max(initial=-np.inf)
    if not np.isfinite(best):
        raise RowFailed(f"the maximum of its logits is {best}", "sampling", "The model is broken for this input")
    with np.errstate(over="ignore"):
        return (scores - best) / temperature


def _keep_top_k(scores: np.ndarray, top_k: int) -> np.ndarray:
    threshold = np.partition(scores, -top_k)[-top_k]
    return np.where(scores < threshold, -np.inf, scores)


def _keep_top_p(scores: np.ndarray, top_p: float) -> np.ndarray:
    ascending = np.argsort(scores, kind="stable")
    below = np.cumsum(_softmax(scores[ascending]))
    removed = ascending[below <= 1 - top_p]
    kept = scores.copy()
    kept[removed[removed != ascending[-1]]] = -np.inf
    return kept


def _keep_min_p(scores: np.ndarray, min_p: float) -> np.ndarray:
    """Remove tokens that are less likely than `min_p` times the likeliest, whose score is 0 and which stays."""
    return np.where(scores < math.log(min_p), -np.inf, scores)


def _softmax(scores: np.ndarray) -> np.ndarray:
    weights = np.exp(scores)
    return weights / weights.sum()

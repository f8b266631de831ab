"""Chooses tokens: the same logits, sampling and output index give the same token, whatever else is in the batch.

Generation settings change the logits first (model/processors.py). Temperature, top-k and top-p have the order and
meaning of transformers' logits warpers. The distribution is float64 on the CPU; its one random number is a
counter-based function of (seed, output index) alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from ...errors import RequestError
from ...ipc.messages import NEUTRAL, Sampling
from ..model.processors import TokenHistory, apply_settings


class RowFailed(RequestError):
    """Failure of one row; the other rows of its unit go on."""


def choose(logits: Tensor, sampling: Sampling, output_index: int) -> int:
    """Choose the token for one row of logits [vocabulary].

    A given first token is taken, greedy sampling takes the first maximum, other sampling draws. Raises RowFailed for
    logits that contain NaN or have no finite maximum, and for a temperature that is not a positive number.
    """
    if output_index == 0 and sampling.first_token is not None:
        return sampling.first_token
    if sampling.temperature == 0:
        return _greedy(logits)
    probabilities = distribution(logits, sampling)
    return _draw(probabilities, uniform(sampling.seed, output_index))


def choose_all(
    logits: Tensor,
    samplings: Sequence[Sampling],
    output_indices: Sequence[int],
    histories: Sequence[TokenHistory] = (),
) -> list[int | RowFailed]:
    """Choose one token for each row of logits [rows, vocabulary]; a row that has none gets its failure.

    `histories`, one a row or empty, hold the generation settings, which change the logits first.
    """
    greedy = all(sampling.temperature == 0 and sampling.first_token is None for sampling in samplings)
    plain = all(history.settings == NEUTRAL for history in histories)
    if greedy and plain and not bool(logits.isnan().any()):
        return [int(token) for token in logits.argmax(dim=-1).tolist()]
    changed = logits if plain else [apply_settings(*pair) for pair in zip(logits, histories, strict=True)]
    rows = zip(changed, samplings, output_indices, strict=True)
    return [_choose_or_fail(row, sampling, index) for row, sampling, index in rows]


def distribution(logits: Tensor, sampling: Sampling) -> np.ndarray:
    """Return probabilities, float64 [vocabulary], after temperature, top-k and top-p; filtered tokens have exactly 0.

    Ties at the k-th value all stay, as in transformers; ties at the edge of top-p are removed in order of token id.
    Raises RowFailed as `choose` does.
    """
    scores = _scaled(logits, sampling.temperature)
    if 0 < sampling.top_k < len(scores):
        scores = _keep_top_k(scores, sampling.top_k)
    if sampling.top_p < 1:
        scores = _keep_top_p(scores, sampling.top_p)
    return _softmax(scores)


def uniform(seed: int, output_index: int) -> float:
    """Return a number in [0, 1) that depends on the arguments alone (Philox, Salmon et al. 2011, keyed by both)."""
    key = np.array([seed % 2**64, output_index], dtype=np.uint64)
    return float(np.random.Generator(np.random.Philox(key=key)).random())


def _choose_or_fail(logits: Tensor, sampling: Sampling, output_index: int) -> int | RowFailed:
    try:
        return choose(logits, sampling, output_index)
    except RowFailed as failure:
        return failure


def _greedy(logits: Tensor) -> int:
    if bool(logits.isnan().any()):
        raise RowFailed("its logits contain NaN", "sampling", "The model or its weights are broken for this input")
    return int(logits.argmax())


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


def _softmax(scores: np.ndarray) -> np.ndarray:
    weights = np.exp(scores)
    return weights / weights.sum()


def _draw(probabilities: np.ndarray, number: float) -> int:
    """Invert the cumulative distribution in order of token ids; never return a token of probability 0."""
    cumulative = np.cumsum(probabilities)
    token = int(np.searchsorted(cumulative, number * cumulative[-1], side="right"))
    return min(token, int(np.flatnonzero(probabilities)[-1]))

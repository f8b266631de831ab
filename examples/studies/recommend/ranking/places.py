"""Place of the target among all candidates, and HR, NDCG and AUC of many places."""

from __future__ import annotations

import msgspec
import numpy as np

CUTS = (10, 20)


class Quality(msgspec.Struct, frozen=True, kw_only=True):
    """Means over questions, × 100, but for `auc`."""

    questions: int
    hr10: float
    hr20: float
    ndcg10: float
    ndcg20: float
    auc: float
    """Share of the other candidates that stand behind the target, 0 to 1."""


def places(scores: np.ndarray, targets: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """Return int64 [n]: the place of each target, from 1, among the items that are not hidden.

    `scores` is float [n, items], `hidden` bool of this shape. A target is always a candidate, also as a repeat
    purchase. Of equal scores the target's comes last, so that a model without an opinion gains nothing. An item with
    NaN stands before it, so a broken model gains nothing either.
    """
    rows = np.arange(len(targets))
    own = scores[rows, targets][:, None]
    ahead = ~(scores < own) & ~hidden
    ahead[rows, targets] = True
    return ahead.sum(axis=1)


def candidates(hidden: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return int64 [n]: how many items stand for choice, the target included."""
    shown = ~hidden
    shown[np.arange(len(targets)), targets] = True
    return shown.sum(axis=1)


def quality(place: np.ndarray, of: np.ndarray) -> Quality:
    """Return the measures of places, int64 [n], among `of` candidates, int64 [n]."""
    gains = 1.0 / np.log2(place + 1.0)
    hits = {f"hr{cut}": _percent(place <= cut) for cut in CUTS}
    ndcg = {f"ndcg{cut}": _percent(np.where(place <= cut, gains, 0.0)) for cut in CUTS}
    auc = float(np.mean(1.0 - (place - 1) / np.maximum(of - 1, 1))) if len(place) else 0.0
    return Quality(questions=len(place), auc=auc, **hits, **ndcg)


def mean_quality(parts: list[Quality]) -> Quality:
    """Return the plain mean over windows, whatever their numbers of questions, as the paper does."""
    names = ("hr10", "hr20", "ndcg10", "ndcg20", "auc")
    means = {name: float(np.mean([getattr(part, name) for part in parts])) for name in names}
    return Quality(questions=sum(part.questions for part in parts), **means)


def _percent(values: np.ndarray) -> float:
    return 100.0 * float(np.mean(values)) if len(values) else 0.0

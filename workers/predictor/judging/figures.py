"""What forecasts are judged by: recall, precision, calibration, and the paper's B_acc."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec
import numpy as np

from .replay import Judged

BATCH_SIZES = (1, 2, 4, 8)
CALIBRATION_BINS = 20


class BatchFigures(msgspec.Struct, frozen=True, kw_only=True):
    """B_acc of the paper (arXiv 2410.17954, §4.2): recall of a batch's union; it says nothing without the sizes.

    None where no step had so many tokens.
    """

    tokens: int
    accuracy: float | None
    """Share of the experts that a layer's batch uses which are among the most likely `experts_each` of a token."""
    size_ratio: float | None
    """Experts forecast to experts used."""
    accuracy_double: float | None
    """The same with twice as many experts forecast for each token."""
    size_ratio_double: float | None


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """A predictor over a trace; shares from 0 to 1."""

    tokens: int
    recall: float
    """Of the experts used, among as many most likely ones of the layer."""
    recall_double: float
    """Among twice as many."""
    precision: float
    """Of the experts with probability ≥ 0.5, those that were used."""
    coverage: float
    """Of the experts used, those with probability ≥ 0.5."""
    calibration_error: float
    """Expected |probability − frequency|, over 20 bins of probability, each weighing as its forecasts."""
    recall_by_layer: list[float]
    batches: list[BatchFigures]


@dataclass
class _Unions:
    """Sizes, summed over layers and batches."""

    used: int = 0
    forecast: int = 0
    both: int = 0
    forecast_double: int = 0
    both_double: int = 0

    def add(self, used: np.ndarray, best: np.ndarray, double: np.ndarray) -> None:
        """bool [batches, tokens, layers, experts] each."""
        used, best, double = (np.asarray(part.any(axis=1)) for part in (used, best, double))
        self.used += int(used.sum())
        self.forecast += int(best.sum())
        self.both += int((used & best).sum())
        self.forecast_double += int(double.sum())
        self.both_double += int((used & double).sum())

    def figures(self, tokens: int) -> BatchFigures:
        def share(count: int) -> float | None:
            return count / self.used if self.used else None

        return BatchFigures(
            tokens=tokens,
            accuracy=share(self.both),
            size_ratio=share(self.forecast),
            accuracy_double=share(self.both_double),
            size_ratio_double=share(self.forecast_double),
        )


@dataclass
class _Sums:
    tokens: int = 0
    used: np.ndarray = field(default_factory=lambda: np.zeros(0))
    found: np.ndarray = field(default_factory=lambda: np.zeros(0))
    found_double: float = 0.0
    likely: int = 0
    likely_used: int = 0
    bin_counts: np.ndarray = field(default_factory=lambda: np.zeros(CALIBRATION_BINS))
    bin_chances: np.ndarray = field(default_factory=lambda: np.zeros(CALIBRATION_BINS))
    bin_used: np.ndarray = field(default_factory=lambda: np.zeros(CALIBRATION_BINS))


def judge(steps: Iterable[Judged], batch_sizes: tuple[int, ...] = BATCH_SIZES) -> Figures:
    """Sums up all steps. Batches are made of neighbouring tokens of a step, so they mean something in decode only."""
    sums, unions = _Sums(), {size: _Unions() for size in batch_sizes}
    for step in steps:
        used = _hot(step.routes, step.forecast.shape[2])
        best, double = (_best(step.forecast, times * step.routes.shape[2]) for times in (1, 2))
        _add(sums, step.forecast, used, best, double)
        for size, union in unions.items():
            whole = len(used) // size * size
            if whole:
                union.add(*(part[:whole].reshape(-1, size, *part.shape[1:]) for part in (used, best, double)))
    return _figures(sums, [union.figures(size) for size, union in unions.items()])


def _add(sums: _Sums, forecast: np.ndarray, used: np.ndarray, best: np.ndarray, double: np.ndarray) -> None:
    sums.tokens += len(used)
    sums.used = used.sum(axis=(0, 2)) + (sums.used if sums.used.size else 0)
    sums.found = (used & best).sum(axis=(0, 2)) + (sums.found if sums.found.size else 0)
    sums.found_double += float((used & double).sum())
    likely = forecast >= 0.5
    sums.likely += int(likely.sum())
    sums.likely_used += int((likely & used).sum())
    bins = np.minimum(forecast * CALIBRATION_BINS, CALIBRATION_BINS - 1).astype(np.int64).ravel()
    sums.bin_counts += np.bincount(bins, minlength=CALIBRATION_BINS)
    sums.bin_chances += np.bincount(bins, weights=forecast.ravel(), minlength=CALIBRATION_BINS)
    sums.bin_used += np.bincount(bins, weights=used.ravel(), minlength=CALIBRATION_BINS)


def _figures(sums: _Sums, batches: list[BatchFigures]) -> Figures:
    all_used = max(float(sums.used.sum()), 1.0)
    gaps = np.abs(sums.bin_chances - sums.bin_used).sum()
    return Figures(
        tokens=sums.tokens,
        recall=float(sums.found.sum()) / all_used,
        recall_double=sums.found_double / all_used,
        precision=sums.likely_used / max(sums.likely, 1),
        coverage=sums.likely_used / all_used,
        calibration_error=float(gaps / max(sums.bin_counts.sum(), 1)),
        recall_by_layer=(sums.found / np.maximum(sums.used, 1)).tolist(),
        batches=batches,
    )


def _hot(routes: np.ndarray, experts: int) -> np.ndarray:
    hot = np.zeros((*routes.shape[:2], experts), dtype=bool)
    np.put_along_axis(hot, routes, True, axis=2)
    return hot


def _best(forecast: np.ndarray, count: int) -> np.ndarray:
    """bool: the `count` most likely experts of each layer."""
    count = min(count, forecast.shape[2])
    chosen = np.argpartition(-forecast, count - 1, axis=2)[:, :, :count]
    best = np.zeros(forecast.shape, dtype=bool)
    np.put_along_axis(best, chosen, True, axis=2)
    return best

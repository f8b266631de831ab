"""Figures of predictions: recall, precision, calibration error, and the paper's B_acc."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec
import numpy as np

from .replay import JudgedStep

BATCH_SIZES = (1, 2, 4, 8)
CALIBRATION_BINS = 20


class BatchFigures(msgspec.Struct, frozen=True, kw_only=True):
    """B_acc of the paper (arXiv 2410.17954, §4.2): recall of a batch's union. It means nothing without the sizes.

    None where no step had that many tokens.
    """

    tokens: int
    accuracy: float | None
    """Share of the experts used by a layer's batch that are among the k most likely of one of its tokens."""
    size_ratio: float | None
    """Experts predicted, divided by experts used."""
    accuracy_double: float | None
    """Accuracy with twice as many experts predicted for each token."""
    size_ratio_double: float | None


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """Figures of a predictor over a trace; shares from 0 to 1."""

    tokens: int
    recall: float
    """Share of the used experts that are among the k most likely of the layer."""
    recall_double: float
    """Share of the used experts that are among the 2k most likely of the layer."""
    precision: float
    """Share of the experts with probability ≥ 0.5 that were used."""
    coverage: float
    """Share of the used experts that have probability ≥ 0.5."""
    calibration_error: float
    """Mean |probability − frequency| over 20 bins of probability, each weighted by its number of predictions."""
    recall_by_layer: list[float]
    batches: list[BatchFigures]


@dataclass
class _Unions:
    """Numbers of experts, summed over layers and batches."""

    used: int = 0
    forecast: int = 0
    both: int = 0
    forecast_double: int = 0
    both_double: int = 0

    def add(self, used: np.ndarray, best: np.ndarray, double: np.ndarray) -> None:
        """Add batches; each array is bool [batches, tokens, layers, experts]."""
        used, best, double = (np.asarray(part.any(axis=1)) for part in (used, best, double))
        self.used += int(used.sum())
        self.forecast += int(best.sum())
        self.both += int((used & best).sum())
        self.forecast_double += int(double.sum())
        self.both_double += int((used & double).sum())

    def figures(self, tokens: int) -> BatchFigures:
        """Return the figures of batches of `tokens` tokens."""

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
    bin_probabilities: np.ndarray = field(default_factory=lambda: np.zeros(CALIBRATION_BINS))
    bin_used: np.ndarray = field(default_factory=lambda: np.zeros(CALIBRATION_BINS))


def judge(steps: Iterable[JudgedStep], batch_sizes: tuple[int, ...] = BATCH_SIZES) -> Figures:
    """Return the figures over all steps.

    A batch is a run of neighbouring tokens of a step, so batches have a meaning in decode only.
    """
    sums, unions = _Sums(), {size: _Unions() for size in batch_sizes}
    for step in steps:
        used = _multi_hot(step.routes, step.forecast.shape[2])
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
    sums.bin_probabilities += np.bincount(bins, weights=forecast.ravel(), minlength=CALIBRATION_BINS)
    sums.bin_used += np.bincount(bins, weights=used.ravel(), minlength=CALIBRATION_BINS)


def _figures(sums: _Sums, batches: list[BatchFigures]) -> Figures:
    all_used = max(float(sums.used.sum()), 1.0)
    gaps = np.abs(sums.bin_probabilities - sums.bin_used).sum()
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


def _multi_hot(routes: np.ndarray, experts: int) -> np.ndarray:
    multi_hot = np.zeros((*routes.shape[:2], experts), dtype=bool)
    np.put_along_axis(multi_hot, routes, True, axis=2)
    return multi_hot


def _best(forecast: np.ndarray, count: int) -> np.ndarray:
    """Return bool [tokens, layers, experts]: the `count` most likely experts of each layer."""
    count = min(count, forecast.shape[2])
    chosen = np.argpartition(-forecast, count - 1, axis=2)[:, :, :count]
    best = np.zeros(forecast.shape, dtype=bool)
    np.put_along_axis(best, chosen, True, axis=2)
    return best

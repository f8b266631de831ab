"""Counts of a stage over all its epochs: a restart begins its counters at zero, sums of all epochs never fall."""

from __future__ import annotations

from ...ipc.messages import StageStats, StageTotals

NOTHING = StageTotals(0, 0, 0, {}, {})


def add_epoch(earlier: StageTotals, stats: StageStats) -> StageTotals:
    """Return the totals of `earlier` epochs and of the one that `stats` describes."""
    counters, histograms = dict(earlier.counters), dict(earlier.histograms)
    for name, value in stats.counters.items():
        counters[name] = counters.get(name, 0) + value
    for name, counts in stats.histograms.items():
        histograms[name] = histograms[name] + counts if name in histograms else counts
    return StageTotals(
        busy_ns=earlier.busy_ns + stats.busy_ns,
        stalled_ns=earlier.stalled_ns + stats.stalled_ns,
        done=earlier.done + stats.done,
        counters=counters,
        histograms=histograms,
    )

"""The comparison of disturbed streams counts what was lost, doubled and changed."""

from __future__ import annotations

from expertflow.benchmarks.cluster.disturbed import compare_streams


def test_lost_doubled_and_changed_tokens_are_told_apart() -> None:
    calm = [[1, 2, 3], [1, 2, 3], [1, 2, 3], [4, 5]]
    wild = [[1, 2], [1, 2, 2, 3], [1, 9, 3], [4, 5]]
    assert compare_streams(calm, wild) == {"lost": 1, "doubled": 1, "different": 1}
    assert compare_streams(calm, calm) == {"lost": 0, "doubled": 0, "different": 0}

"""Limits of coming steps, found while a step that did not fit the memory runs in parts."""

from __future__ import annotations

import torch

from ...ipc.messages import RequestRow, StepSize


class OomLimits:
    """Sizes that fitted or exceeded a device's memory while one step ran in parts: rows and padded positions."""

    def __init__(self) -> None:
        self._fitted = StepSize(0, 0)
        self._too_large: StepSize | None = None

    @property
    def at_most(self) -> StepSize | None:
        """Largest size to try from now on; None if memory was never short.

        Half of the smallest size that failed, or the largest that fitted if that is more.
        """
        if self._too_large is None:
            return None
        rows = max(self._fitted.rows, self._too_large.rows // 2, 1)
        return StepSize(rows, max(self._fitted.positions, self._too_large.positions // 2, 1))

    def record_success(self, rows: list[RequestRow]) -> None:
        """Note that rows fitted."""
        size = _size(rows)
        self._fitted = StepSize(max(self._fitted.rows, size.rows), max(self._fitted.positions, size.positions))

    def record_failure(self, rows: list[RequestRow], error: Exception) -> None:
        """Note that rows did not fit, if the error is one of memory."""
        if not isinstance(error, torch.OutOfMemoryError):
            return
        size, least = _size(rows), self._too_large or _size(rows)
        self._too_large = StepSize(min(least.rows, size.rows), min(least.positions, size.positions))


def _size(rows: list[RequestRow]) -> StepSize:
    return StepSize(len(rows), len(rows) * max(len(row.token_ids) for row in rows))

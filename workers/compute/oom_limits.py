"""What fitted the memory of a device, and what did not, while a step was run in parts."""

from __future__ import annotations

import torch

from ...ipc.messages import RequestRow, StepSize


class OomLimits:
    """Of one step. Sizes are rows and padded positions."""

    def __init__(self) -> None:
        self._fitted = StepSize(0, 0)
        self._too_large: StepSize | None = None

    @property
    def at_most(self) -> StepSize | None:
        """What may be tried from now on: half of the smallest that failed, or what fitted if that is more; None if
        memory was never short."""
        if self._too_large is None:
            return None
        rows = max(self._fitted.rows, self._too_large.rows // 2, 1)
        return StepSize(rows, max(self._fitted.positions, self._too_large.positions // 2, 1))

    def succeeded(self, rows: list[RequestRow]) -> None:
        size = _size(rows)
        self._fitted = StepSize(max(self._fitted.rows, size.rows), max(self._fitted.positions, size.positions))

    def failed(self, rows: list[RequestRow], error: Exception) -> None:
        if not isinstance(error, torch.OutOfMemoryError):
            return
        size, least = _size(rows), self._too_large or _size(rows)
        self._too_large = StepSize(min(least.rows, size.rows), min(least.positions, size.positions))


def _size(rows: list[RequestRow]) -> StepSize:
    return StepSize(len(rows), len(rows) * max(len(row.token_ids) for row in rows))

"""The failure of one row."""

from __future__ import annotations

from ....errors import RequestError


class RowFailed(RequestError):
    """Failure of one row; the other rows of its unit go on."""

"""The hook of what bans tokens by the output so far, such as a grammar."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor


class TokenMask(Protocol):
    """Bans tokens of one row. A mask is a pure function of the output so far, so that a row can be computed again."""

    def apply(self, scores: Tensor, output_ids: Sequence[int]) -> Tensor:
        """Return scores float32 [vocabulary] in which banned tokens are -inf; `output_ids` are the tokens so far.

        Called after settings and penalties, before temperature, top-k, top-p and min-p. Raises RowFailed if no token
        is allowed.
        """
        ...

"""Moments in the middle of a stream, for a stage to die at."""

from __future__ import annotations

from expertflow.runtime.client import Batch


def await_tokens(batch: Batch, count: int) -> None:
    """Until so many more tokens of all prompts together have come."""
    seen = 0
    for event in batch:
        seen += len(event.token_ids)
        if seen >= count:
            return

"""How far a batch of requests is, on stderr."""

from __future__ import annotations

from ...ipc.messages import Progress
from ..client.client import Batch
from ..monitor.progress import ProgressView


def show_batch(batch: Batch, stage: str) -> None:
    """Wait for the end of every request and show meanwhile how many have ended; `stage` says who waits."""
    with ProgressView() as view:
        ended = 0
        view(Progress(stage, f"{len(batch):,} prompts", ended, len(batch)))
        for event in batch:
            ended += event.finish_reason is not None or event.error is not None
            view(Progress(stage, f"{len(batch):,} prompts", ended, len(batch)))

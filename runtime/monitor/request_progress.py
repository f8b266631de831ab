"""Progress of a batch of requests on stderr, and whether it waits behind requests of other clients."""

from __future__ import annotations

from collections.abc import Callable

from ...errors import EngineError
from ...ipc.messages import Progress, Snapshot
from ..client import Batch, Client
from .progress import ProgressView

CHECK_S = 2.0
"""A batch that waits longer than this for its first token asks whether other requests are the reason."""


def show_batch(client: Client, batch: Batch, stage: str) -> None:
    """Wait for the end of every request and show meanwhile how many have ended; `stage` is the command's name."""
    what, total = f"{len(batch):,} prompts", len(batch)
    with ProgressView() as view:
        view(Progress(stage, what, 0, total))
        show_queue(client, batch, stage, view)
        ended = 0
        for event in batch:
            ended += event.finish_reason is not None or event.error is not None
            view(Progress(stage, what, ended, total))


def show_queue(client: Client, batch: Batch, stage: str, view: Callable[[Progress], None]) -> None:
    """Wait for the batch's first token; show meanwhile how many requests of other clients the engine has."""
    shown = ""
    while not batch.wait_until_started(CHECK_S):
        others = _other_requests(client, batch)
        what = _queue_text(others) if others else ""
        if what != shown:
            _end(view, stage, shown)
            shown = what
            if what:
                view(Progress(stage, what, 0, 1))
    _end(view, stage, shown)


def count_requests(snapshot: Snapshot) -> int:
    """Return how many requests run or wait in an engine, or in all engines of a group."""
    schedulers = [stats for name, stats in snapshot.stages.items() if name.rpartition("/")[2] == "scheduler"]
    return sum(stats.queue + int(stats.counters.get("running", 0)) for stats in schedulers)


def _other_requests(client: Client, batch: Batch) -> int:
    """Return the number of requests beside the batch's own; 0 if no engine answers."""
    try:
        return max(0, count_requests(client.stats(CHECK_S)) - batch.under_way)
    except EngineError:  # an engine that has ended shows in the batch itself
        return 0


def _queue_text(others: int) -> str:
    requests = "one request" if others == 1 else f"{others:,} requests"
    return f"waits for its turn: the engine has {requests} of other clients"


def _end(view: Callable[[Progress], None], stage: str, what: str) -> None:
    if what:
        view(Progress(stage, what, 1, 1))

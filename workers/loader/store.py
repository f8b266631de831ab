"""Fills the host store: every expert of the model in shared memory, once."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable

import numpy as np

from ...errors import CheckpointError
from ..checkpoint.survey import Survey
from .transfers import ExpertSource, Transfer, TransferEngine


def fill_store(
    source: ExpertSource, store: np.ndarray, survey: Survey, threads: int, progress: Callable[[str, int, int], None]
) -> None:
    """Read all experts, by layer then expert, one stride each. Raises CheckpointError when a file cannot be read."""
    done: queue.SimpleQueue[Transfer] = queue.SimpleQueue()
    engine = TransferEngine(source, store, survey.stride_bytes, threads, done.put, time.monotonic_ns)
    try:
        for number in range(survey.expert_count):
            engine.start(number, *divmod(number, survey.experts), urgent=False)
        for number in range(survey.expert_count):
            transfer = done.get()
            if transfer.error is not None:
                raise CheckpointError(str(transfer.error), survey.folder, "Check the disk and the checkpoint's files")
            if number % 64 == 0:
                progress("filling the host store", number, survey.expert_count)
    finally:
        engine.close()

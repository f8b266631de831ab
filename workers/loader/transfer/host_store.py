"""Fills the host store: every expert of the model in shared memory, once."""

from __future__ import annotations

import os
import queue
import select
import time
from collections.abc import Callable

import numpy as np

from ...checkpoint.survey import Survey
from .transfers import ExpertSource, Transfer, TransferEngine, failure_of


def fill_store(
    source: ExpertSource, store: np.ndarray, survey: Survey, threads: int, progress: Callable[[str, int, int], None]
) -> None:
    """Read all experts into `store`, uint8 [bytes], by layer then expert, one stride each, and close `source`.

    `progress(what, experts done, experts in all)` is called now and then, and at the end. Raises CheckpointError when a
    file has changed since the survey, EngineError when one cannot be read.
    """
    done: queue.SimpleQueue[Transfer] = queue.SimpleQueue()
    engine = TransferEngine(source, store, survey.stride_bytes, threads, done.put, time.monotonic_ns)
    # A few at a time: the chunks of all experts of a big model would be millions of objects.
    ahead = 2 * threads
    try:
        for number in range(survey.expert_count + ahead):
            if number >= ahead:
                _check(done.get(), survey)
                _report(number - ahead + 1, survey.expert_count, progress)
            if number < survey.expert_count:
                engine.start(number, *divmod(number, survey.experts), urgent=False)
    finally:
        engine.close()


def notify_full(full_fd: int) -> None:
    """Tell the processes that share the store that it is full; -1: none does."""
    if full_fd >= 0:
        os.eventfd_write(full_fd, 1)


def await_full(full_fd: int) -> None:
    """Wait until another process has filled the store; -1: it has. If it never does, a watchdog ends this process."""
    if full_fd >= 0:
        poller = select.poll()
        poller.register(full_fd, select.POLLIN)
        while not poller.poll():
            continue


def _check(transfer: Transfer, survey: Survey) -> None:
    failure = failure_of(transfer, survey.folder)
    if failure is not None:
        raise failure


def _report(done: int, total: int, progress: Callable[[str, int, int], None]) -> None:
    if done % 64 == 0 or done == total:
        progress("filling the host store", done, total)

"""Runs the requests of a batch file: a bounded number at a time, results written as they end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from ...errors import ExpertFlowError
from ..client.async_client import AsyncClient
from ..client.completions import Completion
from ..client.options import Request
from ..openai.model import ServedModel
from .calls import NO_DEFAULTS, Defaults, Failed, answer_line, error_line, failure_of, read_call
from .job import Job
from .progress import BatchProgress
from .request_line import RequestLine
from .result_lines import fault_line
from .store import IndexedInput

SYNC_S = 1.0
"""Time after which lines are made to survive a crash of the machine."""
ROWS_AHEAD = 2
"""Requests under way, in batches of the engine: one runs, one waits, so that the engine never does."""
MIN_UNDER_WAY = 16


class Show(Protocol):
    """Shows the progress; called about twice a second."""

    def __call__(self, progress: BatchProgress, now_s: float) -> None:
        """Show it."""
        ...


@dataclass(frozen=True)
class BatchRun:
    """One run of a job: what it reads, where it writes, and what shapes its results."""

    given: IndexedInput
    job: Job
    model: ServedModel
    progress: BatchProgress
    show: Show
    batch_invariant: bool = False
    """Let no result depend on other requests, where a body does not say otherwise."""
    defaults: Defaults = field(default_factory=lambda: NO_DEFAULTS)
    under_way: int = MIN_UNDER_WAY
    """Lines that run or wait in the engine at the same time."""
    reader: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "expertflow-batch"))
    """One thread reads all bodies: msgspec may crash when two threads use a type for the first time."""

    async def run(self, client: AsyncClient, order: Iterator[np.ndarray]) -> None:
        """Run the rows that `order` yields, a window at a time, and return when all have ended.

        Raises EngineError when the engine ends, OutputError when a result cannot be written, InputChanged. Lines that
        were written stay; the others run in the next run.
        """
        rows: asyncio.Queue[int | None] = asyncio.Queue(self.under_way)
        tasks = [self._feed(rows, order), self._tend(), *(self._work(client, rows) for _ in range(self.under_way))]
        try:
            await _first_error([asyncio.create_task(task) for task in tasks], endless=1)
        finally:
            self.reader.shutdown(wait=False, cancel_futures=True)
        self.job.ending.sync()

    async def _feed(self, rows: asyncio.Queue[int | None], order: Iterator[np.ndarray]) -> None:
        """Put all rows into the queue, then an end for each worker. Windows are ordered in a thread."""
        while (window := await asyncio.to_thread(next, order, None)) is not None:
            for row in window.tolist():
                await rows.put(row)
        for _ in range(self.under_way):
            await rows.put(None)

    async def _work(self, client: AsyncClient, rows: asyncio.Queue[int | None]) -> None:
        while (row := await rows.get()) is not None:
            await self._run_row(client, row)

    async def _run_row(self, client: AsyncClient, row: int) -> None:
        line = self.given.request(row)
        result = await self._result(client, line)
        failed = isinstance(result, Failed)
        if isinstance(result, Failed):
            result = error_line(line.custom_id, int(self.given.index.numbers[row]), result, self.job.name)
        self.job.ending.end(row, result, failed)
        self.progress.end_line(failed)

    async def _result(self, client: AsyncClient, line: RequestLine) -> bytes | Failed:
        """Return the line of results of a request, or its failure. Raises EngineError."""
        read = await asyncio.get_running_loop().run_in_executor(
            self.reader, read_call, line, self.model, self.job.name, self.job.created, self.defaults
        )
        if isinstance(read, Failed):
            return read
        try:
            return answer_line(line.custom_id, read.call, await self._complete(client, read.requests), self.job.name)
        except ExpertFlowError as error:
            return failure_of(error, read.call)

    async def _complete(self, client: AsyncClient, requests: list[Request]) -> list[Completion]:
        """Return the completions of requests. Raises the first of their errors after all have ended."""
        batch = await client.submit(requests, batch_invariant=self.batch_invariant or None)
        async for event in batch:
            self.progress.add_tokens(len(event.token_ids))
        return await batch.results()

    async def _tend(self) -> None:
        """Sync what was written, and show progress, until cancelled."""
        while True:
            now_s = time.monotonic()
            self.progress.mark(now_s)
            self.show(self.progress, now_s)
            await asyncio.sleep(SYNC_S)
            await asyncio.to_thread(self.job.ending.sync)


def report_faults(given: IndexedInput, job: Job, progress: BatchProgress) -> None:
    """Write a line of errors for every line that is no request. Raises OutputError."""
    for row, number, fault in given.faults():
        job.ending.end(row, fault_line(fault, number, job.name), failed=True)
        progress.end_line(failed=True)


async def _first_error(tasks: list[asyncio.Task[None]], endless: int) -> None:
    """Wait until all tasks but `endless` ones have ended, or one has failed; cancel the others, raise its error."""
    try:
        waiting = set(tasks)
        while len(waiting) > endless:
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def lines_under_way(batch_size: int, engines: int) -> int:
    """Return how many lines to keep in engines with so many rows each."""
    return max(MIN_UNDER_WAY, ROWS_AHEAD * batch_size * engines)

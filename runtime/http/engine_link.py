"""The engine as the HTTP server has it: loading, then ready with a client, then perhaps gone."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from ...errors import EngineError, ExpertFlowError
from ..client.async_client import AsyncClient
from ..openai.call import Call
from ..openai.errors import BUSY, SERVER, ApiError, to_api_error
from ..openai.model import ServedModel
from .counters import Counters
from .spec import FrontSpec, Loading, Serving, Update

T = TypeVar("T")
THREADS = 2
"""Threads that make requests of bodies: a long text does not hold up a short one."""
SMOOTHING = 0.2
"""Weight of the newest request in the mean duration."""
MAX_RETRY_S = 60


class EngineLink:
    """The engine's state, its client and its model."""

    def __init__(self, spec: FrontSpec, counters: Counters) -> None:
        self.spec, self.counters = spec, counters
        self.loading: Loading | None = Loading("starting", 0, 1)
        """Progress of the start; None once the engine is ready or gone."""
        self.failure: ExpertFlowError | None = None
        self.stopping = asyncio.Event()
        """Set when requests that still run must end."""
        self._client: AsyncClient | None = None
        self._model: ServedModel | None = None
        self._threads = ThreadPoolExecutor(THREADS, "expertflow-bodies")
        self._seconds = 0.0

    async def update(self, update: Update) -> None:
        """Apply what the command tells."""
        match update:
            case Loading():
                self.loading = update
            case Serving(address):
                await self._connect(address)

    async def close(self) -> None:
        """Disconnect."""
        if self._client is not None:
            await self._client.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    @property
    def client(self) -> AsyncClient:
        """Return the client. Raises ApiError (503) while there is no engine."""
        self._require_ready()
        if self._client is None:
            raise ApiError(503, "The engine is not ready", kind=SERVER, code="loading")
        return self._client

    @property
    def model(self) -> ServedModel:
        """Return the model. Raises ApiError (503) while there is no engine."""
        self._require_ready()
        if self._model is None:
            raise ApiError(503, "The engine is not ready", kind=SERVER, code="loading")
        return self._model

    @property
    def is_ready(self) -> bool:
        """Return whether requests can be answered."""
        return self._client is not None and self.error is None

    @property
    def error(self) -> ExpertFlowError | None:
        """Return the error that ended the engine."""
        return self.failure or (self._client.failure if self._client else None)

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Run work that takes a processor for a while, so that streams go on meanwhile."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    @contextmanager
    def admit(self, call: Call) -> Iterator[None]:
        """Count the requests of a body as open. Raises ApiError: 429 if too many are, 400 if it alone has too many."""
        count, limit = len(call.requests), self.request_limit
        if count > limit:
            raise ApiError(400, f"The body has {count} requests, the limit is {limit}", code="too_many_requests")
        if self.counters.open_requests + count > limit:
            what = f"{self.counters.open_requests} requests are open, the limit is {limit}"
            raise ApiError(429, what, kind=BUSY, code="busy")
        begun = asyncio.get_running_loop().time()
        self.counters.open_requests += count
        try:
            yield
        finally:
            self.counters.open_requests -= count
            taken = asyncio.get_running_loop().time() - begun
            self._seconds += SMOOTHING * (taken - self._seconds)

    @property
    def request_limit(self) -> int:
        """Return how many requests may be open: as many as the scheduler queues, so that it refuses none of them."""
        return self.model.facts.queue_limit

    @property
    def retry_s(self) -> int:
        """Return the seconds after which a refused client should try again: about when the next request ends."""
        rows = self._model.facts.batch_size if self._model else 1
        return min(MAX_RETRY_S, max(1, math.ceil(self._seconds / rows)))

    def _require_ready(self) -> None:
        if (error := self.error) is not None:
            raise to_api_error(error)
        if self.loading is not None:
            what = f"The model is loading: {self.loading.phase}, {self.loading.percent:g} %"
            raise ApiError(503, what, kind=SERVER, code="loading")

    async def _connect(self, address: str) -> None:
        client = AsyncClient(address, window=None)
        try:
            await client.connect()
            codec = client.codec
            await self.in_thread(lambda: codec.decode([0]))  # loads the tokenizer
            self._model = ServedModel(
                names=tuple(self.spec.names),
                facts=client.model,
                codec=codec,
                default_max_tokens=self.spec.default_max_tokens,
                own_settings=self.spec.own_settings,
            )
        except ExpertFlowError as error:
            self.failure = error
            await client.close()
        else:
            self._client = client
        self.loading = None


def gone() -> EngineError:
    """Return the error for requests that the end of the server cuts short."""
    return EngineError("the server is being stopped", "http", "Send the request again later")

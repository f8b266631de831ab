"""The engine as the HTTP server has it: loading, then ready with a client, then perhaps gone."""

from __future__ import annotations

import asyncio
import math
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from prometheus_client.core import Metric

from ...errors import ExpertFlowError
from ..client.async_client import AsyncClient
from ..openai.call import Call
from ..openai.errors import BUSY, SERVER, ApiError, to_api_error
from ..openai.model import ServedModel
from ..page.files import read_page_files
from ..page.live_feed import LiveFeed
from .counters import Counters
from .replies import BodyRoom
from .spec import FrontSpec, Loading, Serving, Update
from .stop_signal import StopSignal
from .users import share_of

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
        self.room = BodyRoom(max(spec.limits.bodies_bytes, spec.limits.body_bytes))
        self.loading: Loading | None = Loading("starting", 0, 1)
        """Progress of the start; None once the engine is ready or gone."""
        self.failure: ExpertFlowError | None = None
        self.salt = secrets.token_bytes(16)
        """Salt of the names that users have here (`user_of`)."""
        self.stopping = StopSignal()
        """Set when requests that still run must end."""
        self.page_files = read_page_files()
        self.feed = LiveFeed(self)
        self.address = ""
        """Address of the engine; empty before it is ready."""
        self.cluster_metrics: Callable[[], Iterable[Metric]] | None = None
        """Metrics of a cluster, if this is its front: in place of those of an engine."""
        self._client: AsyncClient | None = None
        self._model: ServedModel | None = None
        self._threads = ThreadPoolExecutor(THREADS, "expertflow-bodies")
        self._working = 0
        self._seconds = 0.0
        self._open: Counter[str] = Counter()
        """Open requests of each user that has any."""

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

    def describe(self) -> dict[str, Any]:
        """Return the state of the server in the words of the page: loading, running or ended."""
        if (error := self.error) is not None:
            return {"state": "ended", "error": str(error)}
        if self._model is None or self.loading is not None:
            loading = self.loading or Loading("starting", 0, 1)
            return {"state": "loading", "phase": loading.phase, "percent": loading.percent}
        chats = self._model.codec.has_chat_template
        return {"state": "running", "model": self._model.name, "chats": chats, "context": self._model.facts.context}

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Run work that takes a processor for a while, so that streams go on meanwhile."""
        self._working += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        finally:
            self._working -= 1

    @property
    def threads_idle(self) -> bool:
        """Return whether no work runs in a thread, or waits for one."""
        return self._working == 0

    @contextmanager
    def admit(self, call: Call, user: str) -> Iterator[None]:
        """Count the requests of a body as open. Raises ApiError: 429 if too many are, 400 if it alone has too many."""
        count = len(call.requests)
        self._check_room(count, user)
        begun = asyncio.get_running_loop().time()
        self.counters.open_requests += count
        self._open[user] += count
        try:
            yield
        finally:
            self.counters.open_requests -= count
            self._open -= Counter({user: count})
            taken = asyncio.get_running_loop().time() - begun
            self._seconds += SMOOTHING * (taken - self._seconds)

    def _check_room(self, count: int, user: str) -> None:
        """Raise ApiError unless so many requests of a user may be opened."""
        limit = self.request_limit
        share = share_of(limit)
        if count > share:
            raise ApiError(400, f"The body has {count} requests, the limit is {share}", code="too_many_requests")
        if self.counters.open_requests + count > limit:
            what = f"{self.counters.open_requests} requests are open, the limit is {limit}"
            raise ApiError(429, what, kind=BUSY, code="busy")
        if self._open[user] + count > share:
            what = f"{self._open[user]} of your requests are open, the limit of one client is {share}"
            raise ApiError(429, what, kind=BUSY, code="busy")

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
            self._client, self.address = client, address
        self.loading = None

"""The asyncio client: the methods of `Client`, awaited. Many tasks may use one at the same time.

    async with AsyncClient(engine.address) as client:
        done = await client.generate(["Once upon", [5, 9, 11]], max_new_tokens=32)
        async for event in await client.submit(prompts, max_new_tokens=32):
            print(event.index, event.text_delta)

The event loop watches the pool's descriptor. Texts and images become ids in a thread of the client's own. One client
belongs to one event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self, Unpack
from weakref import WeakSet

from ...errors import EngineError, ExpertFlowError, UsageError
from ...ipc.messages import HistoryPoint, Snapshot, Welcome
from ..text.answers.formats import make_parser
from ..text.answers.parts import AnswerParser
from ..text.codec import TextCodec
from ..text.conversation import ChatOptions, Messages
from ..text.structured import Structured
from .address import Address
from .async_batch import AsyncBatch, stream_events
from .completions import Completion, Event
from .images import ImagePrompt
from .options import OptionNames, Prompt, Request, read_prompts, require_timeout
from .request import BatchUpdates, ClientRequest
from .session import WINDOW
from .state import ClientState

_STATS_POLL_S = 0.005
Prepared = tuple[list[ClientRequest], BatchUpdates]


class AsyncClient:
    """A client of the engine at `address` (`Supervisor.address`), or of all engines of an `EngineGroup`.

    `async with AsyncClient(address) as client` connects and closes; or call `connect` and `close`. Behaves as `Client`
    when schedulers and engines end.
    """

    def __init__(
        self,
        address: Address,
        *,
        keys: Address | None = None,
        model: str = "",
        connect_timeout_s: float = 30.0,
        answer_timeout_s: float = 60.0,
        window: int | None = WINDOW,
    ) -> None:
        """Store the address; nothing is opened yet. Raises UsageError for a wrong timeout.

        `keys`, `model`: as for `Client`.
        `window`: requests that the scheduler has at once, the others wait here. None: as many as the scheduler queues
        and runs; for a client that stands for many users, so that priorities count among all of them.
        """
        require_timeout(connect_timeout_s, "connect_timeout_s")
        require_timeout(answer_timeout_s, "answer_timeout_s")
        self._address, self._connect_timeout_s, self._answer_timeout_s = address, connect_timeout_s, answer_timeout_s
        self._window, self._keys, self._model = window, keys, model
        self._opened: _LoopDriver | None = None
        self._batches: WeakSet[AsyncBatch] = WeakSet()
        self._thread = ThreadPoolExecutor(1, "expertflow-prepare")

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(
        self, cls: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        await self.close()

    async def connect(self) -> None:
        """Connect to the engine.

        Raises EngineError if there is no engine, or if it does not answer within `connect_timeout_s`; UsageError if the
        client is or was connected.
        """
        if self._opened is not None:
            raise UsageError("was connected before", "client", "Make a new one")
        state = ClientState(self._address, self._answer_timeout_s, self._window, self._keys, self._model)
        self._opened = _LoopDriver(state)
        try:
            await self._opened.wait_for_welcome(self._connect_timeout_s)
        except BaseException:
            await self.close()
            raise

    @property
    def model(self) -> Welcome:
        """Return facts of the model: folder, vocabulary, context, end-of-sequence ids."""
        return self._driver.state.model

    @property
    def codec(self) -> TextCodec:
        """Return the tokenizer and chat template of the model."""
        return self._driver.state.codec

    @property
    def failure(self) -> ExpertFlowError | None:
        """Return the error that ended the last engine; None while one lives."""
        return self._driver.state.pool.failure

    async def generate(
        self, prompts: Iterable[Prompt | Request], max_new_tokens: int = 32, **options: Unpack[OptionNames]
    ) -> list[Completion]:
        """Run prompts to their end and return completions in their order.

        Takes what `Client.submit` takes and raises what `AsyncBatch.results` raises. When the awaiting task is
        cancelled, so are the requests in the engine.
        """
        return await (await self.submit(prompts, max_new_tokens, **options)).results()

    async def submit(
        self, prompts: Iterable[Prompt | Request], max_new_tokens: int = 32, **options: Unpack[OptionNames]
    ) -> AsyncBatch:
        """Submit prompts and return without waiting for answers. Takes and raises what `Client.submit` does.

        Texts and images become ids in a thread, so that the event loop goes on meanwhile.
        """
        driver = self._driver
        driver.state.require_open()
        requests, updates = await self._prepare(driver.state, read_prompts(prompts), max_new_tokens, options)
        batch = AsyncBatch(requests, updates, driver.state.codec, driver.cancel, lambda: driver.state.closed)
        self._batches.add(batch)
        driver.submit(requests)
        return batch

    def events(self, *batches: AsyncBatch) -> AsyncIterator[tuple[AsyncBatch, Event]]:
        """Yield events of several batches of this client as they come, each with its batch, until all have ended.

        A task that is cancelled while it awaits an event cancels all of them.
        """
        return stream_events(list(batches))

    async def chat_ids(self, messages: Messages, **options: Unpack[ChatOptions]) -> list[int]:
        """Return the ids of a conversation in the model's chat template, as `Client.chat_ids` does."""
        state = self._driver.state
        state.require_open()
        return await self._driver.loop.run_in_executor(self._thread, state.chat_ids, messages, options)

    async def chat_prompt(self, messages: Messages, **options: Unpack[ChatOptions]) -> list[int] | ImagePrompt:
        """Return the prompt of a conversation, as `Client.chat_prompt` does."""
        state = self._driver.state
        state.require_open()
        return await self._driver.loop.run_in_executor(self._thread, state.chat_prompt, messages, options)

    def answer_parser(self, prompt_ids: Sequence[int], reads_calls: bool = False) -> AnswerParser:
        """Return a parser of an answer, as `Client.answer_parser` does."""
        return make_parser(self._driver.state.codec, prompt_ids, reads_calls)

    @property
    def has_chat_template(self) -> bool:
        """Return whether the model has a chat template; see `Client.has_chat_template`."""
        return self._driver.state.codec.has_chat_template

    @property
    def is_chat_model(self) -> bool:
        """Return whether the model was trained on conversations; see `Client.is_chat_model`."""
        return self._driver.state.codec.is_chat_model

    async def stats(self, timeout_s: float = 5.0) -> Snapshot:
        """Return the latest statistics of every stage. Takes and raises what `Client.stats` does."""
        require_timeout(timeout_s, "timeout_s")
        driver = self._driver
        driver.state.require_open()
        with driver.state.pool.monitors() as monitors:
            monitors.ask(timeout_s)
            while (snapshot := monitors.answer()) is None:
                await asyncio.sleep(_STATS_POLL_S)
                driver.state.require_open()
            return snapshot

    async def history(self, since_ns: int = 0, timeout_s: float = 5.0) -> dict[str, list[HistoryPoint]]:
        """Return engine -> its points of the last hour. Takes and raises what `Client.history` does."""
        require_timeout(timeout_s, "timeout_s")
        driver = self._driver
        driver.state.require_open()
        with driver.state.pool.monitors() as monitors:
            monitors.ask_history(since_ns, timeout_s)
            while (history := monitors.history_answer()) is None:
                await asyncio.sleep(_STATS_POLL_S)
                driver.state.require_open()
            return history

    async def close(self) -> None:
        """Cancel open requests and disconnect. Tasks that still wait for a batch get an EngineError. Idempotent."""
        if self._opened is None or self._opened.state.closed:
            return
        self._opened.stop()
        for batch in list(self._batches):
            batch.wake()
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._thread, self._opened.state.close)  # it may wait for the last messages
        self._thread.shutdown(wait=False)

    @property
    def _driver(self) -> _LoopDriver:
        if self._opened is None:
            raise EngineError("the client is not connected", "client", "Use it in `async with`, or await connect()")
        if asyncio.get_running_loop() is not self._opened.loop:
            raise UsageError("was connected in another event loop", "client", "Make a client in each event loop")
        return self._opened

    async def _prepare(
        self, state: ClientState, prompts: list[Prompt | Request], max_new_tokens: int, options: OptionNames
    ) -> Prepared:
        """Make requests of prompts, in a thread if there are texts, images or grammars to compile."""
        if not (_is_form(options.get("structured")) or any(_needs_thread(prompt) for prompt in prompts)):
            return state.prepare(prompts, max_new_tokens, options)
        loop = asyncio.get_running_loop()
        work = loop.run_in_executor(self._thread, state.prepare, prompts, max_new_tokens, options)
        try:
            prepared = await asyncio.shield(work)
        except asyncio.CancelledError:
            work.add_done_callback(lambda done: _discard(state, done))
            raise
        state.require_open()
        return prepared


class _LoopDriver:
    """Drives the pool of a client from the running event loop."""

    def __init__(self, state: ClientState) -> None:
        self.state, self.loop = state, asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_ns = 0
        self._sending: asyncio.Handle | None = None
        self._welcomed = asyncio.Event()
        self.loop.add_reader(state.pool.fileno(), self._on_readable)
        self._after_call()

    async def wait_for_welcome(self, timeout_s: float) -> None:
        """Wait for the engine's first answer. Raises EngineError if there is none within `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._welcomed.wait()
        except TimeoutError:
            pass
        self.state.welcome_client(timeout_s)

    def submit(self, requests: list[ClientRequest]) -> None:
        """Queue requests: those of one turn of the event loop are sent together."""
        self.state.enqueue(requests)
        if self._sending is None:
            self._sending = self.loop.call_soon(self._send)

    def cancel(self, requests: list[ClientRequest]) -> None:
        self.state.cancel(requests)
        if not self.state.closed:
            self._after_call()

    def stop(self) -> None:
        """Stop driving the pool: the client is closed."""
        self.state.closed = True
        self.loop.remove_reader(self.state.pool.fileno())
        for handle in (self._timer, self._sending):
            if handle is not None:
                handle.cancel()

    def _send(self) -> None:
        self._sending = None
        self.state.pool.on_deadline()
        self._after_call()

    def _on_readable(self) -> None:
        self.state.pool.on_readable()
        self._after_call()

    def _on_deadline(self) -> None:
        self._timer = None
        self.state.pool.on_deadline()
        self._after_call()

    def _after_call(self) -> None:
        """Release images, note the welcome and set the timer, as is due after every call of the pool."""
        pool = self.state.pool
        self.state.release_images()
        if pool.welcome is not None or pool.failure is not None:
            self._welcomed.set()
        deadline_ns = pool.next_deadline()
        if deadline_ns is not None and (self._timer is None or deadline_ns < self._timer_ns):
            self._set_timer(deadline_ns)

    def _set_timer(self, deadline_ns: int) -> None:
        """Set the timer. A timer that fires too early is set again then: cheaper than moving it every time."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer_ns = deadline_ns
        wait_s = max(0, deadline_ns - time.monotonic_ns()) / 1e9
        self._timer = self.loop.call_later(wait_s, self._on_deadline)


def _needs_thread(prompt: Prompt | Request) -> bool:
    """Return whether it takes long to make a request of the prompt."""
    if isinstance(prompt, Request):
        return _needs_thread(prompt.prompt) or _is_form(prompt.structured)
    return isinstance(prompt, (str, ImagePrompt))


def _is_form(structured: object) -> bool:
    return isinstance(structured, Structured)


def _discard(state: ClientState, prepared: asyncio.Future[Prepared]) -> None:
    """Remove the attachments that were prepared for a task that was cancelled meanwhile."""
    if not prepared.cancelled() and prepared.exception() is None:
        state.discard(prepared.result()[0])

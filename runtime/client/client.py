"""The client library: prompts in, completions out.

    with Client(engine.address) as client:
        done = client.generate(["Once upon", [5, 9, 11]], max_new_tokens=32)
        batch = client.submit(prompts, max_new_tokens=32)
        for event in batch:                  # tokens of all requests as they come
            print(event.index, event.text_delta)

There is no background thread: messages are sent and received inside `submit`, `results`, iteration and `cancel`, for
all batches of the client at once. One client belongs to one thread; several clients may talk to one engine.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterable
from types import TracebackType

from ...errors import EngineError, ExpertFlowError
from ...ipc.messages import Snapshot, Submit, Welcome
from .batch import Batch
from .completions import Completion, Event, NotDoneInTime
from .connection import run_dir_of
from .images import ImagePreprocessor, ImagePrompt
from .pool import EnginePool
from .prompts import Prompt, RequestOptions, read_prompt, read_prompts, read_wishes
from .request import ClientRequest
from .text import TextCodec

__all__ = ["Batch", "Client", "Completion", "Event", "ImagePrompt", "NotDoneInTime", "Prompt"]

_FOREVER_NS = 2**62


class Client:
    """Talks to the engine at `address` (`Supervisor.address`), or to all of an `EngineGroup`. A context manager.

    Raises EngineError if there is no engine, or if it does not answer within `connect_timeout_s`. Later, a restarted
    scheduler is waited for; what is open fails when the engine ends or its scheduler is silent for `answer_timeout_s`.
    Of several engines, what one had open goes on at the others then.
    """

    def __init__(
        self, address: str | os.PathLike[str], *, connect_timeout_s: float = 30.0, answer_timeout_s: float = 60.0
    ) -> None:
        self._lanes = EnginePool()
        self._images = ImagePreprocessor(run_dir_of(address))
        self._with_images: list[ClientRequest] = []
        self._closed = False
        try:
            self._lanes.connect(address, answer_timeout_s)
            self._model = self._shake_hands(connect_timeout_s)
        except BaseException:
            self.close()
            raise
        self._codec = TextCodec(self._model.model)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def model(self) -> Welcome:
        """Facts of the model: folder, vocabulary, context, end-of-sequence ids."""
        return self._model

    def generate(
        self,
        prompts: Iterable[Prompt],
        max_new_tokens: int = 32,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int | None = None,
        eos_ids: Iterable[int] | None = None,
        deadline_s: float | None = None,
        first_token: int | None = None,
    ) -> list[Completion]:
        """Run prompts (texts, lists of ids, image prompts) to their end, completions in their order.

        See `submit` and `results`.
        """
        batch = self.submit(
            prompts, max_new_tokens, temperature, top_k, top_p, seed, eos_ids, deadline_s, first_token=first_token
        )
        return batch.results()

    def submit(
        self,
        prompts: Iterable[Prompt],
        max_new_tokens: int = 32,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int | None = None,
        eos_ids: Iterable[int] | None = None,
        deadline_s: float | None = None,
        wait_when_busy: bool = True,
        first_token: int | None = None,
    ) -> Batch:
        """Hand in prompts and return at once.

        `temperature` 0 is greedy. Request i samples with seed + i; without `seed` it is drawn. `eos_ids`: None stops at
        the model's own, an empty list never. A request past `deadline_s` ends with what it has. When the engine's queue
        is full, requests are sent again later, or fail with BusyError if `wait_when_busy` is False. Outputs begin with
        `first_token`, which for a translator names the language; None: with the model's own, if its settings force one.

        Raises RequestError for an argument that no request can have. A bad prompt fails alone, in the batch's results.
        """
        wishes = read_wishes(max_new_tokens, temperature, top_k, top_p, seed, eos_ids, deadline_s, first_token)
        given = read_prompts(prompts)
        self._require_open()
        news: dict[int, None] = {}
        orders = [self._order(index, prompt, wishes, news, wait_when_busy) for index, prompt in enumerate(given)]
        for order in orders:
            if not order.ended:
                self._lanes.hand_in(order)
        self._pump(0)
        return Batch(orders, news, self._codec, self._pump_until, self._cancel)

    def stats(self, timeout_s: float = 5.0) -> Snapshot:
        """What every stage published last: rates, queues, hits, loads, bytes, stalls, memory.

        Of a group of engines those of all; a stage is called DEVICE/STAGE then.
        """
        self._require_open()
        return self._lanes.snapshot(timeout_s)

    def close(self) -> None:
        """Cancel what is open and leave."""
        if self._closed:
            return
        self._closed = True
        self._lanes.close()
        self._images.close()

    def _order(
        self, index: int, prompt: Prompt, wishes: RequestOptions, news: dict[int, None], wait_when_busy: bool
    ) -> ClientRequest:
        try:
            (prompt_ids, attachment), error = self._read(prompt), None
        except ExpertFlowError as wrong:
            (prompt_ids, attachment), error = ([], ""), wrong
        submit = Submit(
            request_id=uuid.uuid4().hex,
            prompt_ids=prompt_ids,
            max_new_tokens=wishes.max_new_tokens,
            sampling=wishes.sampling_of(index),
            eos_ids=wishes.eos_ids,
            deadline_ms=wishes.deadline_ms,
            attachment=attachment,
        )
        order = ClientRequest(index, submit, news, wait_when_busy, error=error)
        if error is not None:
            order.tell()
        if attachment:
            self._with_images.append(order)
        return order

    def _read(self, prompt: Prompt) -> tuple[list[int], str]:
        """Ids, and the name of the file that compute will read the images from."""
        if not isinstance(prompt, ImagePrompt):
            return read_prompt(prompt, self._codec, self._model), ""
        prompt_ids, content = self._images.read(prompt, self._model.model)
        prompt_ids = read_prompt(prompt_ids, self._codec, self._model)
        return prompt_ids, self._images.keep(content)

    def _forget_images(self) -> None:
        """Of requests that have ended: nobody will compute them again."""
        for order in self._with_images:
            if order.ended:
                self._images.forget(order.submit.attachment)
        self._with_images = [order for order in self._with_images if not order.ended]

    def _cancel(self, orders: list[ClientRequest]) -> None:
        for order in orders:
            self._lanes.cancel(order)
        self._pump(0)

    def _shake_hands(self, timeout_s: float) -> Welcome:
        self._pump_until(lambda: self._lanes.welcome is not None, timeout_s)
        if self._lanes.failure is not None:
            raise self._lanes.failure
        if self._lanes.welcome is None:
            raise EngineError(f"no answer within {timeout_s} s", "scheduler", "Is the engine still starting?")
        return self._lanes.welcome

    def _require_open(self) -> None:
        if self._closed:
            raise EngineError("the client is closed", "client", "Make a new one")
        if self._lanes.failure is not None:
            raise self._lanes.failure

    @property
    def _over(self) -> bool:
        return self._closed or self._lanes.failure is not None

    def _pump_until(self, reached: Callable[[], bool], timeout_s: float | None) -> None:
        """Exchange messages until `reached` or out of time; a dead engine reaches everything, with errors."""
        if self._closed and not reached():
            raise EngineError("the client was closed before its requests were done", "client", "Close it later")
        deadline_ns = _FOREVER_NS if timeout_s is None else time.monotonic_ns() + round(timeout_s * 1e9)
        self._pump(0)
        while not (reached() or self._over) and (left_ns := deadline_ns - time.monotonic_ns()) > 0:
            self._pump(left_ns)

    def _pump(self, wait_ns: int) -> None:
        if not self._over:
            self._lanes.pump(wait_ns)
            self._forget_images()

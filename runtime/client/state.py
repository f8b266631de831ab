"""The common part of `Client` and `AsyncClient`: makes requests of prompts, and owns the pool that runs them."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable

from ...errors import EngineError, ExpertFlowError
from ...ipc.messages import Submit, Welcome
from ..text.codec import TextCodec
from .address import run_dir_of
from .images import ImagePreprocessor, ImagePrompt
from .options import OptionNames, Prompt, Request, RequestOptions, read_options, read_prompt, read_prompts, read_request
from .pool import EnginePool
from .request import BatchUpdates, ClientRequest


class ClientState:
    """Engines, model and open images of one client. It never waits: `pool` is driven from outside."""

    model: Welcome
    codec: TextCodec

    def __init__(self, address: str | os.PathLike[str], answer_timeout_s: float) -> None:
        """Open the connections. Raises EngineError if there is no engine."""
        self.pool = EnginePool(address, answer_timeout_s)
        self.closed = False
        self._images = ImagePreprocessor(run_dir_of(address))
        self._with_images: list[ClientRequest] = []

    @property
    def ended(self) -> bool:
        """Return whether no answer can come any more: closed, or no engine is left."""
        return self.closed or self.pool.failure is not None

    def welcome_client(self, timeout_s: float) -> None:
        """Read the model's facts after waiting `timeout_s` for them. Raises EngineError if they have not come."""
        if self.pool.failure is not None:
            raise self.pool.failure
        if self.pool.welcome is None:
            raise EngineError(f"no answer within {timeout_s} s", "scheduler", "Is the engine still starting?")
        self.model = self.pool.welcome
        self.codec = TextCodec(self.model.model)

    def require_open(self) -> None:
        """Raise EngineError if the client is closed or no engine is left."""
        if self.closed:
            raise EngineError("the client is closed", "client", "Make a new one")
        if self.pool.failure is not None:
            raise self.pool.failure

    def prepare(
        self, prompts: Iterable[Prompt | Request], max_new_tokens: int, options: OptionNames
    ) -> tuple[list[ClientRequest], BatchUpdates]:
        """Return requests for a batch; a bad prompt becomes one that has ended with its error. Touches no socket.

        Raises RequestError or UsageError for a call that is wrong as a whole.
        """
        shared, updates = read_options(max_new_tokens, **options), BatchUpdates()
        return [self._request(i, prompt, shared, updates) for i, prompt in enumerate(read_prompts(prompts))], updates

    def submit(self, requests: list[ClientRequest]) -> None:
        """Submit requests that `prepare` has made."""
        self._with_images += [request for request in requests if request.submit.attachment]
        self.pool.submit(requests)

    def discard(self, requests: list[ClientRequest]) -> None:
        """Remove the images of requests that have ended or will not be submitted."""
        for request in requests:
            if request.submit.attachment:
                self._images.remove(request.submit.attachment)

    def cancel(self, requests: list[ClientRequest]) -> None:
        """Cancel requests. Does nothing if the client is closed or no engine is left."""
        if not self.ended:
            self.pool.cancel(requests)

    def release_images(self) -> None:
        """Remove the images of requests that have ended: they are not computed again."""
        if not self._with_images:
            return
        self.discard([request for request in self._with_images if request.ended])
        self._with_images = [request for request in self._with_images if not request.ended]

    def close(self) -> None:
        """Cancel open requests and disconnect. May block for a fifth of a second. Idempotent."""
        self.closed = True
        self.pool.close()
        self._images.close()

    def _request(
        self, index: int, prompt: Prompt | Request, shared: RequestOptions, updates: BatchUpdates
    ) -> ClientRequest:
        prompt_ids, attachment, options, error = [], "", shared, None
        try:
            content, options = read_request(prompt, shared, index)
            prompt_ids, attachment = self._read(content)
        except ExpertFlowError as refusal:
            error = refusal
        request = ClientRequest(index, _submit(prompt_ids, attachment, options), updates, options.wait_when_busy)
        if error is not None:
            request.fail(error)
        return request

    def _read(self, prompt: Prompt) -> tuple[list[int], str]:
        """Return the ids, and the name of the attachment with the images (empty: none)."""
        if not isinstance(prompt, ImagePrompt):
            return read_prompt(prompt, self.codec, self.model), ""
        prompt_ids, content = self._images.read(prompt, self.model.model)
        prompt_ids = read_prompt(prompt_ids, self.codec, self.model)
        return prompt_ids, self._images.keep(content)


def _submit(prompt_ids: list[int], attachment: str, options: RequestOptions) -> Submit:
    return Submit(
        request_id=uuid.uuid4().hex,
        prompt_ids=prompt_ids,
        max_new_tokens=options.max_new_tokens,
        sampling=options.sampling(),
        eos_ids=None if options.eos_ids is None else list(options.eos_ids),
        stop_ids=list(options.stop_ids),
        deadline_ms=options.deadline_ms,
        attachment=attachment,
        batch_invariant=options.batch_invariant,
        priority=options.priority,
        details=options.details,
    )

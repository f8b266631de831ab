"""The common part of `Client` and `AsyncClient`: makes requests of prompts, and owns the pool that runs them."""

from __future__ import annotations

import uuid
from collections.abc import Iterable

import msgspec

from ...errors import EngineError, ExpertFlowError, RequestError, UsageError
from ...ipc.messages import Submit, Welcome
from ...workers.checkpoint.resolve import local_folder
from ..text.codec import TextCodec, TextStream
from ..text.conversation import ChatOptions, Messages, read_conversation
from ..text.output_text import OutputText
from .address import Address, is_remote, run_dir_of, silent_error
from .images import ImagePreprocessor, ImagePrompt
from .options import OptionNames, Prompt, Request, RequestOptions, read_options, read_prompt, read_prompts, read_request
from .pool import EnginePool
from .request import BatchUpdates, ClientRequest
from .session import WINDOW


class ClientState:
    """Engines, model and open images of one client. It never waits: `pool` is driven from outside."""

    model: Welcome
    codec: TextCodec

    def __init__(
        self,
        address: Address,
        answer_timeout_s: float,
        window: int | None = WINDOW,
        keys: Address | None = None,
        model: str = "",
    ) -> None:
        """Open the connections. Raises EngineError if there is no engine, UsageError for keys that cannot be used.

        `keys`: folder of the client's keys, for an engine over TCP. `model`: folder with the model's tokenizer; empty:
        that of the engine.
        """
        self.pool = EnginePool(address, answer_timeout_s, window, keys)
        self.closed = False
        self._address, self._own_model = address, model
        self._images = None if is_remote(address) else ImagePreprocessor(run_dir_of(address))
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
            raise silent_error(self._address, timeout_s)
        self.model = self.pool.welcome
        if self._own_model:
            self.model = msgspec.structs.replace(self.model, model=_folder_of(self._own_model))
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
        requests: list[ClientRequest] = []
        for prompt in read_prompts(prompts):
            requests += self._requests(len(requests), prompt, shared, updates)
        return requests, updates

    def submit(self, requests: list[ClientRequest]) -> None:
        """Submit requests that `prepare` has made."""
        self.enqueue(requests)
        self.pool.submit([])

    def enqueue(self, requests: list[ClientRequest]) -> None:
        """Submit requests that `prepare` has made, as `EnginePool.enqueue` does."""
        self._with_images += [request for request in requests if request.submit.attachment]
        self.pool.enqueue(requests)

    def discard(self, requests: list[ClientRequest]) -> None:
        """Remove the images of requests that have ended or will not be submitted."""
        for request in requests:
            if request.submit.attachment and self._images is not None:
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
        if self._images is not None:
            self._images.close()
        if hasattr(self, "codec"):  # not without an engine
            self.codec.close()

    def chat_prompt(self, messages: Messages, options: ChatOptions) -> list[int] | ImagePrompt:
        """Return a conversation as ids, or as text with images. Raises what `Client.chat_prompt` does."""
        conversation = read_conversation(messages, **options)
        if conversation.images:
            return ImagePrompt(self.codec.render_chat(conversation), conversation.images)
        return self.codec.encode_chat(conversation)

    def chat_ids(self, messages: Messages, options: ChatOptions) -> list[int]:
        """Return the ids of a conversation without images. Raises what `Client.chat_ids` does."""
        conversation = read_conversation(messages, **options)
        if conversation.images:
            raise RequestError("has images, which are no ids", "messages", "Use chat_prompt")
        return self.codec.encode_chat(conversation)

    def _requests(
        self, first: int, prompt: Prompt | Request, shared: RequestOptions, updates: BatchUpdates
    ) -> list[ClientRequest]:
        """Return the samples of one prompt, from index `first` of the batch on."""
        prompt_ids, content, options, error = [], b"", shared, None
        try:
            text, options = read_request(prompt, shared, first)
            prompt_ids, content = self._read(text)
        except ExpertFlowError as refusal:
            error = refusal
        requests = []
        for sample in range(options.n):
            request = self._request(first + sample, prompt_ids, options.with_seed(sample), updates)
            requests.append(request)
            self._attach(request, content, error)
        return requests

    def _request(
        self, index: int, prompt_ids: list[int], options: RequestOptions, updates: BatchUpdates
    ) -> ClientRequest:
        submit = _submit(prompt_ids, options)
        ends = {*(self.model.eos_ids if submit.eos_ids is None else submit.eos_ids), *submit.stop_ids}
        stream = TextStream(self.codec, not options.skip_special_tokens, ends)
        text = OutputText(stream, options.stop_rule)
        return ClientRequest(index, submit, updates, options.wait_when_busy, text=text)

    def _attach(self, request: ClientRequest, content: bytes, error: ExpertFlowError | None) -> None:
        """Keep the images of a request where compute finds them; end it with its error, if there is one."""
        try:
            if content and error is None and self._images is not None:
                name = self._images.keep(content)
                request.submit = msgspec.structs.replace(request.submit, attachment=name)
        except ExpertFlowError as refusal:
            error = refusal
        if error is not None:
            request.fail(error)

    def _read(self, prompt: Prompt) -> tuple[list[int], bytes]:
        """Return the ids, and the content of the attachment with the images (empty: none)."""
        if not isinstance(prompt, ImagePrompt):
            return read_prompt(prompt, self.codec, self.model), b""
        if self._images is None:
            raise RequestError("has images, which cannot be sent over TCP", "prompt", _IMAGES)
        prompt_ids, content = self._images.read(prompt, self.model.model)
        return read_prompt(prompt_ids, self.codec, self.model), content


def _folder_of(model: str) -> str:
    folder = local_folder(model)
    if folder is None:
        raise UsageError("must be a folder on this machine", "model", "Give the folder with the model's tokenizer.json")
    return str(folder)


_IMAGES = "Send it over HTTP (expertflow serve --http), or run the client on the engine's machine"


def _submit(prompt_ids: list[int], options: RequestOptions) -> Submit:
    return Submit(
        request_id=uuid.uuid4().hex,
        prompt_ids=prompt_ids,
        max_new_tokens=options.max_new_tokens,
        sampling=options.sampling(),
        eos_ids=None if options.eos_ids is None else list(options.eos_ids),
        stop_ids=list(options.stop_ids),
        deadline_ms=options.deadline_ms,
        batch_invariant=options.batch_invariant,
        priority=options.priority,
        user=options.user,
        domain=options.domain,
        details=options.details,
    )

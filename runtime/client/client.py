"""The blocking client: prompts in, completions out.

    with Client(engine.address) as client:
        done = client.generate(["Once upon", [5, 9, 11]], max_new_tokens=32)
        batch = client.submit(prompts, max_new_tokens=32)
        for event in batch:                  # tokens of all requests as they come
            print(event.index, event.text_delta)

There is no background thread: messages are sent and received inside `submit`, `results`, iteration and `cancel`, for
all batches of the client at once. A client belongs to one thread; several clients may talk to one engine.
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Unpack

from ...errors import EngineError
from ...ipc.messages import HistoryPoint, Snapshot, Welcome
from ..text.answers.formats import make_parser
from ..text.answers.parts import AnswerParser
from ..text.conversation import ChatOptions, Messages
from .address import Address
from .batch import Batch, stream_events
from .completions import Completion, Event
from .images import ImagePrompt
from .options import OptionNames, Prompt, Request, require_timeout
from .pool import CHECK_EVERY_NS
from .request import ClientRequest
from .state import ClientState

_FOREVER_NS = 2**62


class Client:
    """A client of the engine at `address` (`Supervisor.address`), or of all engines of an `EngineGroup`.

    A context manager. Raises EngineError if there is no engine, or if it does not answer within `connect_timeout_s`.
    Later the client waits for a restarted scheduler. Open requests fail when the engine ends or its scheduler is silent
    for `answer_timeout_s`; with several engines they go on at the others.

    An engine over TCP (`tcp://HOST:PORT`) needs `keys`, the folder of the client's keys, and `model`, a folder with the
    model's tokenizer, unless that is where the engine has it.
    """

    def __init__(
        self,
        address: Address,
        *,
        keys: Address | None = None,
        model: str = "",
        connect_timeout_s: float = 30.0,
        answer_timeout_s: float = 60.0,
    ) -> None:
        require_timeout(connect_timeout_s, "connect_timeout_s")
        require_timeout(answer_timeout_s, "answer_timeout_s")
        self._state = ClientState(address, answer_timeout_s, keys=keys, model=model)
        self._poll = select.poll()
        self._poll.register(self._state.pool.fileno(), select.POLLIN)
        try:
            self._drive_until(lambda: self._state.pool.welcome is not None, connect_timeout_s)
            self._state.welcome_client(connect_timeout_s)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Client:
        return self

    def __exit__(self, cls: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    @property
    def model(self) -> Welcome:
        """Return facts of the model: folder, vocabulary, context, end-of-sequence ids."""
        return self._state.model

    def generate(
        self, prompts: Iterable[Prompt | Request], max_new_tokens: int = 32, **options: Unpack[OptionNames]
    ) -> list[Completion]:
        """Run prompts to their end and return completions in their order.

        Takes what `submit` takes and raises what `Batch.results` raises.
        """
        return self.submit(prompts, max_new_tokens, **options).results()

    def submit(
        self, prompts: Iterable[Prompt | Request], max_new_tokens: int = 32, **options: Unpack[OptionNames]
    ) -> Batch:
        """Submit prompts and return at once. A prompt is a text, token ids, an `ImagePrompt`, or a `Request` with one.

        Options hold for all prompts; those that a `Request` names override them.

        :param max_new_tokens: a request ends after so many tokens, if the model does not end it before.
        :param temperature: 0 (the default) takes the likeliest token.
        :param top_k: sample among the k likeliest tokens; 0 (the default): among all.
        :param top_p: sample among the likeliest tokens that together have this probability; 1 (the default): all.
        :param min_p: sample among tokens at least so likely relative to the likeliest; 0 (the default): all.
        :param seed: request i samples with seed + i; by default a seed is drawn.
        :param repetition_penalty: factor over tokens of prompt and output; None (the default): the model's own.
        :param presence_penalty: subtracted from the logit of every token in the output, -2 to 2.
        :param frequency_penalty: subtracted once for each time that a token is in the output, -2 to 2.
        :param logit_bias: token id -> number added to its logit, -100 to 100.
        :param eos_ids: ids that end a request; None (the default): the model's own, an empty list: none.
        :param stop_ids: ids that end a request besides `eos_ids`.
        :param min_new_tokens: tokens before which neither of them ends it; None (the default): the model's own.
        :param deadline_s: a request ends after so many seconds with what it has.
        :param first_token: outputs begin with this id, which for a translator names the language; None (the default):
            with the one that the model's settings force, if any.
        :param logprobs: give each output token's log-probability, and so many likeliest tokens (0 to 20) beside it.
        :param prompt_logprobs: the same for the tokens of the prompt; with `max_new_tokens` 0 only these.
        :param routed_experts: give the experts of every token.
        :param priority: requests with a lower number start first.
        :param user: whom the request is for; users of one client take turns as clients do.
        :param batch_invariant: True: the result depends on no other request (docs/exactness.md), which is slower; None
            (the default): as the engine is configured.
        :param wait_when_busy: when the engine's queue is full, requests are sent again later (the default), or fail
            with BusyError.
        :raises RequestError: for an option that no request can have. A bad prompt fails alone, in the results.
        :raises EngineError: if the client is closed or the engine is known to have ended.
        """
        self._state.require_open()
        requests, updates = self._state.prepare(prompts, max_new_tokens, options)
        self._state.submit(requests)
        return Batch(requests, updates, self._state.codec, self._cancel, self._drive_until)

    def events(self, *batches: Batch) -> Iterator[tuple[Batch, Event]]:
        """Yield events of several batches of this client as they come, each with its batch, until all have ended.

        Raises UsageError for a batch of another client.
        """
        return stream_events(list(batches), self._drive_until)

    def chat_ids(self, messages: Messages, **options: Unpack[ChatOptions]) -> list[int]:
        """Return the ids of a conversation in the model's chat template, up to where the answer begins.

        :param messages: as in OpenAI's chat completions; a text is the only message of a user.
        :param tools: functions that the model may call, for the template.
        :param documents: objects with title and text, for the template.
        :param add_generation_prompt: False: end behind the last message.
        :param continue_final_message: True: end inside the last message, which the model continues.
        :param chat_template_kwargs: other variables of the template, such as `enable_thinking`.
        :raises UsageError: if the model has no chat template, or if it cannot render this conversation.
        :raises RequestError: for what is no conversation, or has images.
        """
        return self._state.chat_ids(messages, options)

    def chat_prompt(self, messages: Messages, **options: Unpack[ChatOptions]) -> list[int] | ImagePrompt:
        """Return the prompt of a conversation as `chat_ids` does; with images an `ImagePrompt`."""
        return self._state.chat_prompt(messages, options)

    def answer_parser(self, prompt_ids: Sequence[int], reads_calls: bool = False) -> AnswerParser:
        """Return a parser that takes the text of the answer to this prompt apart: reasoning, content, tool calls.

        The format is the one that the model's chat template shows. `reads_calls`: the conversation has tools.
        """
        return make_parser(self._state.codec, prompt_ids, reads_calls)

    @property
    def has_chat_template(self) -> bool:
        """Return whether the model has a chat template. Only `chat_ids` puts texts into it."""
        return self._state.codec.has_chat_template

    @property
    def is_chat_model(self) -> bool:
        """Return whether the model's chat template has special tokens: then it was trained on conversations."""
        return self._state.codec.is_chat_model

    def stats(self, timeout_s: float = 5.0) -> Snapshot:
        """Return the latest statistics of every stage: rates, queues, hits, loads, bytes, stalls, memory.

        In a group of engines a stage is called DEVICE/STAGE. Raises EngineError if no engine answers within
        `timeout_s`.
        """
        require_timeout(timeout_s, "timeout_s")
        self._state.require_open()
        with self._state.pool.monitors() as monitors:
            return monitors.snapshot(timeout_s)

    def history(self, since_ns: int = 0, timeout_s: float = 5.0) -> dict[str, list[HistoryPoint]]:
        """Return engine -> its points of the last hour after `since_ns`, one a second, as `Watcher.history` does.

        Raises EngineError if no engine answers within `timeout_s`.
        """
        require_timeout(timeout_s, "timeout_s")
        self._state.require_open()
        with self._state.pool.monitors() as monitors:
            return monitors.history(since_ns, timeout_s)

    def close(self) -> None:
        """Cancel open requests and disconnect."""
        self._state.close()

    def _cancel(self, requests: list[ClientRequest]) -> None:
        self._state.cancel(requests)

    def _drive_until(self, reached: Callable[[], bool], timeout_s: float | None) -> None:
        """Exchange messages until `reached` or out of time. When the engine ends, all requests end with errors."""
        state = self._state
        if state.closed and not reached():
            raise EngineError("the client was closed before its requests were done", "client", "Close it later")
        deadline_ns = _FOREVER_NS if timeout_s is None else time.monotonic_ns() + round(timeout_s * 1e9)
        if not state.ended:
            self._drive(0)
        while not (reached() or state.ended) and (left_ns := deadline_ns - time.monotonic_ns()) > 0:
            self._drive(left_ns)

    def _drive(self, wait_ns: int) -> None:
        """Call the pool once, after a wait of at most `wait_ns`."""
        pool = self._state.pool
        due_ns = pool.next_deadline()
        left_ns = CHECK_EVERY_NS if due_ns is None else due_ns - time.monotonic_ns()
        if self._poll.poll(max(0, -(-min(wait_ns, left_ns) // 1_000_000))):
            pool.on_readable()
        else:
            pool.on_deadline()
        self._state.release_images()

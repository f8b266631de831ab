"""Chats: /v1/chat/completions, and /v1/chat/completions/batch with a choice for each conversation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from msgspec import UNSET, UnsetType

from ...ipc.messages import TokenLogprob
from ..client.completions import Completion, Event
from ..client.options import Prompt
from ..text.answers.parts import AnswerParser, AnswerParts
from .answers import (
    DONE,
    ChatAnswer,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatDelta,
    finish_reason,
    to_sse,
)
from .bodies import ChatBatchBody, ChatBody, ChatOptions
from .call import Call, ChunkWriter, StreamUsage, check_stream, prompt_logprobs_of, routes_of
from .chat_parts import AnswerReader, is_empty, to_delta, to_message
from .chat_prompt import read_chat
from .errors import refuse
from .logprobs import ChatLogprobs, TokenNames, chat_logprobs
from .model import ServedModel
from .sampling import make_requests, read_options
from .usage import Usage, usage_of


class ChatCall(Call):
    """A body of /v1/chat/completions or of its batch form."""

    names = {"prompt": "messages"}

    def __init__(self, body: ChatBody | ChatBatchBody, ignored: list[str], model: ServedModel) -> None:
        """Read the body. Raises ApiError."""
        super().__init__("chatcmpl-", model, body.model, ignored)
        self.body, self.stream, self.choices = body, check_stream(body), body.n or 1
        self.token_names = TokenNames(model.codec, bool(body.return_tokens_as_token_ids))
        _check_batch(body)
        self.reader = AnswerReader(body, model)
        conversations = [body.messages] if isinstance(body, ChatBody) else body.messages
        prompts: list[Prompt] = [read_chat(messages, body, model) for messages in conversations]
        limits = [_limit(body, prompt, model) for prompt in prompts]
        options = read_options(body, model, self.reader.schema) | _logprob_options(body) | self.reader.options
        self.requests = make_requests(prompts, limits, options, self.choices, body.seed)

    def answer(self, completions: Sequence[Completion]) -> ChatAnswer:
        """Return the answer."""
        first, alone = completions[0], isinstance(self.body, ChatBody)
        return ChatAnswer(
            id=self.id,
            created=self.created,
            model=self.model_name,
            choices=[self._choice(index, completion) for index, completion in enumerate(completions)],
            usage=usage_of(completions, self.choices),
            prompt_token_ids=first.prompt_ids if alone and self.body.return_token_ids else UNSET,
            prompt_logprobs=prompt_logprobs_of(first, self.model) if alone else UNSET,
        )

    def writer(self) -> ChunkWriter:
        """Return a writer for a stream."""
        return _ChatWriter(self)

    def wrap(self, choices: list[ChatChunkChoice], usage: Usage | None | UnsetType, **more: Any) -> bytes:
        """Return a chunk with these choices as a server-sent event."""
        return to_sse(
            ChatChunk(id=self.id, created=self.created, model=self.model_name, choices=choices, usage=usage, **more)
        )

    def _choice(self, index: int, completion: Completion) -> ChatChoice:
        parts = self.reader.read(self.requests[index].prompt, completion.text)
        return ChatChoice(
            index=index,
            message=to_message(parts),
            logprobs=self.logprobs_of(completion.logprobs, _last(completion.prompt_ids)),
            finish_reason=finish_of(completion.finish_reason, bool(parts.calls)),
            stop_reason=completion.stop_reason,
            token_ids=completion.token_ids if self.body.return_token_ids else UNSET,
            routed_experts=routes_of(completion, self.body),
        )

    def logprobs_of(self, listed: Sequence[TokenLogprob] | None, before: int | None) -> ChatLogprobs | None:
        """Return the log probabilities of tokens behind token `before`, if the body asks for them."""
        if not self.body.logprobs or listed is None:
            return None
        return chat_logprobs(listed, self.token_names, top=self.body.top_logprobs or 0, before=before)


@dataclass
class _Progress:
    """State of a choice: what was sent of it, and the parser of its answer."""

    parser: AnswerParser
    tokens: int = 0
    last: int | None = None
    calls: int = 0


class _ChatWriter(ChunkWriter):
    """Sends the role of a choice, then a chunk for each event with something new, the last with the finish reason."""

    def __init__(self, call: ChatCall) -> None:
        self._call, self._usage = call, StreamUsage(call.body.stream_options)
        self._sent: dict[int, _Progress] = {}
        self._prompts = [request.prompt if isinstance(request.prompt, list) else [] for request in call.requests]

    def on_event(self, event: Event) -> list[bytes]:
        """Return the chunks for new tokens."""
        chunks = [] if event.index in self._sent else [self._begin(event.index)]
        sent, asked = self._sent[event.index], self._call.body.return_token_ids
        before = _last(self._prompts[event.index]) if sent.last is None else sent.last
        sent.tokens += len(event.token_ids)
        sent.last = event.token_ids[-1] if event.token_ids else sent.last
        read, ended = self._read(event, sent), event.finish_reason is not None
        parts = self._call.reader.keep(read, sent.calls)
        choice = ChatChunkChoice(
            index=event.index,
            delta=to_delta(parts, sent.calls),
            logprobs=self._call.logprobs_of(event.logprobs or None, before),
            finish_reason=finish_of(event.finish_reason, bool(sent.calls or parts.calls)),
            stop_reason=event.stop_reason if ended else UNSET,
            token_ids=event.token_ids if asked else UNSET,
        )
        sent.calls += len(read.calls)
        if ended or asked or choice.logprobs or not is_empty(parts):
            chunks.append(self._chunk([choice], event.index))
        return chunks

    def end(self, completions: Sequence[Completion]) -> list[bytes]:
        """Return the usage if it is asked for, and the end."""
        usage = [self._call.wrap([], usage_of(completions, self._call.choices))] if self._usage.included else []
        return [*usage, DONE]

    def _read(self, event: Event, sent: _Progress) -> AnswerParts:
        parts = sent.parser.feed(event.text_delta)
        return parts if event.finish_reason is None else parts + sent.parser.finish()

    def _begin(self, index: int) -> bytes:
        self._sent[index] = _Progress(self._call.reader.parser(self._call.requests[index].prompt))
        asked = self._call.body.return_token_ids and self._prompts[index]
        more = {"prompt_token_ids": self._prompts[index]} if asked else {}
        delta = ChatDelta(role="assistant", content="")
        return self._chunk([ChatChunkChoice(index=index, delta=delta)], index, **more)

    def _chunk(self, choices: list[ChatChunkChoice], index: int, **more: Any) -> bytes:
        usage = self._usage.so_far(len(self._prompts[index]), self._sent[index].tokens)
        return self._call.wrap(choices, usage, **more)


def finish_of(reason: str | None, has_calls: bool) -> str | None:
    """Return the reason why a choice ended; None if it has not."""
    if reason is None:
        return None
    return "tool_calls" if has_calls and reason == "stop" else finish_reason(reason)


def _check_batch(body: ChatBody | ChatBatchBody) -> None:
    """Raise ApiError for what the batch form does not have, as in vLLM."""
    if isinstance(body, ChatBody):
        return
    for name, given in {"stream": body.stream, "tools": body.tools, "n": (body.n or 1) > 1}.items():
        if given:
            raise refuse(f"{name} is not supported in a batch of conversations", param=name)


def _limit(body: ChatOptions, prompt: Prompt, model: ServedModel) -> int:
    """Return the longest output: as asked, or the server's default within the context."""
    asked = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    if asked == 0:
        raise refuse("max_tokens: a chat has at least 1 token", param="max_tokens")
    used = len(prompt) if isinstance(prompt, list) else 0
    return asked or max(1, min(model.default_max_tokens, model.facts.context - used))


def _logprob_options(body: ChatOptions) -> dict[str, Any]:
    if body.top_logprobs and not body.logprobs:
        raise refuse("top_logprobs needs logprobs: true", param="top_logprobs")
    return {"logprobs": body.top_logprobs or 0} if body.logprobs else {}


def _last(ids: Sequence[int]) -> int | None:
    return ids[-1] if ids else None

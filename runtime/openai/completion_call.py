"""Completions: /v1/completions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from msgspec import UNSET, UnsetType

from ...errors import ExpertFlowError
from ...ipc.messages import TokenLogprob
from ..client.completions import Completion, Event
from .answers import DONE, CompletionAnswer, CompletionChoice, finish_reason, to_sse
from .bodies import CompletionBody
from .call import (
    Call,
    ChunkWriter,
    StreamUsage,
    check_ids,
    check_stream,
    check_text,
    prompt_logprobs_of,
    routes_of,
    too_long,
)
from .errors import refuse, to_api_error
from .logprobs import CompletionLogprobs, TokenNames, completion_logprobs
from .model import ServedModel
from .sampling import make_requests, read_options
from .usage import Usage, usage_of

DEFAULT_TOKENS = 16
MAX_PROMPTS = 4096


class CompletionCall(Call):
    """A body of /v1/completions."""

    def __init__(self, body: CompletionBody, ignored: list[str], model: ServedModel) -> None:
        """Read the body. Raises ApiError."""
        super().__init__("cmpl-", model, body.model, ignored)
        self.body, self.stream, self.choices = body, check_stream(body), body.n or 1
        self.token_names = TokenNames(model.codec, bool(body.return_tokens_as_token_ids))
        self._prompts = _read_prompts(body, model)
        limit = DEFAULT_TOKENS if body.max_tokens is None else body.max_tokens
        self.requests = make_requests(
            [prompt.ids for prompt in self._prompts],
            [limit] * len(self._prompts),
            read_options(body, model) | _logprob_options(body, limit),
            self.choices,
            body.seed,
        )

    def prompt(self, index: int) -> _Prompt:
        """Return the prompt of request `index`."""
        return self._prompts[index // self.choices]

    def answer(self, completions: Sequence[Completion]) -> CompletionAnswer:
        """Return the answer."""
        choices = [self._choice(index, completion) for index, completion in enumerate(completions)]
        return self.wrap(choices, usage_of(completions, self.choices))

    def wrap(self, choices: list[CompletionChoice], usage: Usage | None | UnsetType) -> CompletionAnswer:
        """Return an answer or a chunk with these choices."""
        return CompletionAnswer(id=self.id, created=self.created, model=self.model_name, choices=choices, usage=usage)

    def writer(self) -> ChunkWriter:
        """Return a writer for a stream."""
        return _CompletionWriter(self)

    def _choice(self, index: int, completion: Completion) -> CompletionChoice:
        prompt, asked = self.prompt(index), self.body.return_token_ids
        return CompletionChoice(
            index=index,
            text=(prompt.text(self.model) if self.body.echo else "") + completion.text,
            logprobs=self.logprobs_of(completion, prompt),
            finish_reason=finish_reason(completion.finish_reason),
            stop_reason=completion.stop_reason,
            token_ids=completion.token_ids if asked else UNSET,
            prompt_token_ids=completion.prompt_ids if asked else UNSET,
            prompt_logprobs=UNSET if self.body.prompt_logprobs is None else prompt_logprobs_of(completion, self.model),
            routed_experts=routes_of(completion, self.body),
        )

    def logprobs_of(self, completion: Completion, prompt: _Prompt) -> CompletionLogprobs | None:
        """Return the log probabilities of a whole choice, those of the prompt included if it is echoed."""
        top = self.body.logprobs
        if top is None:
            return None
        listed: list[TokenLogprob | None] = [*(completion.logprobs or ())]
        if not self.body.echo:
            before = prompt.ids[-1]
            return completion_logprobs(completion.token_ids, listed, self.token_names, top=top, before=before)
        listed = [*(completion.prompt_logprobs or ()), *listed]
        return completion_logprobs([*prompt.ids, *completion.token_ids], listed, self.token_names, top=top)


@dataclass
class _Prompt:
    """A prompt as ids, and the text it came as, if any."""

    ids: list[int]
    given: str | None = None

    def text(self, model: ServedModel) -> str:
        return model.codec.decode(self.ids, special_tokens=True) if self.given is None else self.given


@dataclass
class _Progress:
    """State of a choice: what was sent of it."""

    tokens: int = 0
    letters: int = 0
    last: int | None = None


class _CompletionWriter(ChunkWriter):
    """Sends a chunk an event. An echo with log probabilities goes out whole: those of the prompt come at the end."""

    def __init__(self, call: CompletionCall) -> None:
        self._call, self._usage = call, StreamUsage(call.body.stream_options)
        self._sent = [_Progress() for _ in call.requests]
        self._whole = bool(call.body.echo and call.body.logprobs is not None)

    def on_event(self, event: Event) -> list[bytes]:
        """Return the chunk for new tokens."""
        if self._whole:
            return []
        call, sent = self._call, self._sent[event.index]
        prompt, first = call.prompt(event.index), sent.last is None
        echoed = prompt.text(call.model) if first and call.body.echo else ""
        choice = CompletionChoice(
            index=event.index,
            text=echoed + event.text_delta,
            logprobs=self._logprobs(event, sent, prompt),
            finish_reason=None if event.finish_reason is None else finish_reason(event.finish_reason),
            stop_reason=event.stop_reason,
            token_ids=event.token_ids if call.body.return_token_ids else UNSET,
            prompt_token_ids=prompt.ids if call.body.return_token_ids and first else UNSET,
        )
        sent.tokens += len(event.token_ids)
        sent.last = event.token_ids[-1] if event.token_ids else sent.last if sent.last is not None else prompt.ids[-1]
        return [to_sse(call.wrap([choice], self._usage.so_far(len(prompt.ids), sent.tokens)))]

    def end(self, completions: Sequence[Completion]) -> list[bytes]:
        """Return the held choices, the usage if it is asked for, and the end."""
        answer = self._call.answer(completions) if self._whole else None
        held = answer.choices if answer else []
        chunks = [to_sse(self._call.wrap([choice], self._usage.so_far(0, 0))) for choice in held]
        if self._usage.included:
            chunks.append(to_sse(self._call.wrap([], usage_of(completions, self._call.choices))))
        return [*chunks, DONE]

    def _logprobs(self, event: Event, sent: _Progress, prompt: _Prompt) -> CompletionLogprobs | None:
        top = self._call.body.logprobs
        if top is None or not event.logprobs:
            return None
        before = prompt.ids[-1] if sent.last is None else sent.last
        made = completion_logprobs(
            event.token_ids, event.logprobs, self._call.token_names, top=top, before=before, offset=sent.letters
        )
        sent.letters += sum(len(text) for text in made.tokens)
        return made


def _logprob_options(body: CompletionBody, limit: int) -> dict[str, Any]:
    """Return the options for log probabilities. Raises ApiError for an output of no tokens that is not a scoring."""
    if limit == 0 and not (body.echo or body.prompt_logprobs is not None):
        raise refuse("max_tokens: 0 needs echo or prompt_logprobs", param="max_tokens")
    options: dict[str, Any] = {}
    if body.logprobs is not None:
        options["logprobs"] = body.logprobs
    wanted = [count for count in (body.prompt_logprobs, body.logprobs if body.echo else None) if count is not None]
    if limit == 0 and not wanted:
        wanted = [0]
    if wanted:
        options["prompt_logprobs"] = max(wanted)
    return options


def _read_prompts(body: CompletionBody, model: ServedModel) -> list[_Prompt]:
    """Return the prompts of a body as ids. Raises ApiError."""
    if len(body.prompt) > max(model.facts.context, MAX_PROMPTS) and isinstance(body.prompt, list):
        raise too_long(f"{len(body.prompt)} tokens or prompts", model, "prompt")
    listed = _split(body.prompt)
    if not listed or len(listed) > MAX_PROMPTS:
        raise refuse(f"prompt: takes 1 to {MAX_PROMPTS} prompts, not {len(listed)}", param="prompt")
    return [_read_prompt(prompt, body, model) for prompt in listed]


def _split(prompt: str | list[Any]) -> list[Any]:
    """Return the prompts: a list of numbers is one prompt."""
    if isinstance(prompt, str) or (prompt and all(_is_id(token) for token in prompt)):
        return [prompt]
    return prompt


def _is_id(token: Any) -> bool:
    return isinstance(token, int) and not isinstance(token, bool)


def _read_prompt(prompt: Any, body: CompletionBody, model: ServedModel) -> _Prompt:
    if isinstance(prompt, str):
        try:
            ids = model.codec.encode(check_text(prompt, model, "prompt"), body.add_special_tokens is not False)
        except ExpertFlowError as error:
            raise to_api_error(error) from error
        return _Prompt(check_ids(ids, model, "prompt"), prompt)
    if isinstance(prompt, list) and all(_is_id(token) for token in prompt):
        return _Prompt(check_ids(prompt, model, "prompt"))
    raise refuse("prompt: must be a text, token ids, or a list of either", param="prompt")

"""Tokens that an answer counts."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from ..client.completions import Completion


class PromptDetails(msgspec.Struct, frozen=True):
    """Part of the prompt's tokens that was not computed again."""

    cached_tokens: int = 0


class Usage(msgspec.Struct, frozen=True):
    """Tokens of a request. A prompt with several choices counts once."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


def make_usage(prompt: int, output: int, cached: int = 0) -> Usage:
    """Return the usage of so many prompt tokens, of which `cached` were reused, and output tokens."""
    return Usage(prompt, output, prompt + output, PromptDetails(cached))


def usage_of(completions: Iterable[Completion], choices: int) -> Usage:
    """Return the usage of completions in prompt-major order, with `choices` for each prompt."""
    listed = list(completions)
    first = listed[::choices]
    output = sum(len(completion.token_ids) for completion in listed)
    return make_usage(sum(len(each.prompt_ids) for each in first), output, sum(map(cached_tokens, first)))


def cached_tokens(completion: Completion) -> int:
    """Return the prompt tokens of a completion that were reused from another request."""
    return completion.cached_tokens

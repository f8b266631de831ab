"""Three lists of fields: those that are honoured, those that are ignored, and those that are refused by name.

A field is refused because it would change the answer and is not there, or not on this path. One that is in no list is
ignored too, and named in the answer's header `x-expertflow-ignored`: clients send new fields every month.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import msgspec

from .bodies import ChatBody, ChatOptions, CompletionBody, ResponsesBody
from .errors import refuse

HARMLESS = frozenset({
    "cache_salt", "extra_body", "metadata", "prompt_cache_key", "prompt_cache_retention",
    "request_id", "safety_identifier", "service_tier", "session_id", "store", "user",
    "verbosity",
})  # fmt: skip
"""Fields that do not change the answer. They are accepted and ignored."""

REFUSED: dict[str, tuple[str, tuple[Any, ...]]] = {
    "add_special_tokens": ("The chat template has them", (False,)),
    "allowed_token_ids": ("Use logit_bias or structured_outputs", ()),
    "audio": ("The model writes text only", ()),
    "background": ("Send the request without it and wait", (False,)),
    "bad_words": ("Use logit_bias", ([],)),
    "best_of": ("Ask for n and choose", (1,)),
    "chat_template": ("The model's own template is used", ()),
    "conversation": ("Send the whole conversation: nothing is stored", ()),
    "early_stopping": ("There is no beam search", (False,)),
    "function_call": ("Use tool_choice", ("none",)),
    "functions": ("Use tools", ([],)),
    "guided_choice": ("Use structured_outputs.choice", ()),
    "guided_grammar": ("Use structured_outputs.grammar", ()),
    "guided_json": ("Use response_format or structured_outputs.json", ()),
    "guided_regex": ("Use structured_outputs.regex", ()),
    "length_penalty": ("There is no beam search", (1, 1.0)),
    "logprob_token_ids": ("Use logprobs", ()),
    "max_tool_calls": ("Tools are called by you", ()),
    "mm_processor_kwargs": ("The model's own settings are used", ({},)),
    "modalities": ("The model writes text only", (["text"],)),
    "prediction": ("Leave it out: the answer is the same", ()),
    "previous_response_id": ("Send the whole conversation: nothing is stored", ()),
    "prompt": ("Stored prompts are not there", ()),
    "prompt_embeds": ("Send text or token ids", ()),
    "spaces_between_special_tokens": ("The tokenizer's own rule is used", (True,)),
    "suffix": ("The model continues a text", ("",)),
    "thinking_token_budget": ("Use max_tokens", ()),
    "truncate_prompt_tokens": ("Shorten the prompt yourself: /tokenize counts", ()),
    "truncation": ("Shorten the input yourself: /tokenize counts", ("disabled",)),
    "use_beam_search": ("There is no beam search", (False,)),
    "watermarking": ("There is none", (False,)),
    "web_search_options": ("The server reaches no network", ()),
}  # fmt: skip
"""Fields that would change the answer -> what to do instead, and the values that mean nothing and pass."""


_PATHS: dict[str, type[msgspec.Struct]] = {
    "/v1/responses": ResponsesBody, "/v1/completions": CompletionBody, "/v1/chat/completions": ChatBody,
}  # fmt: skip
"""Paths by the body they take; of two that honour a field, the last is named."""
_OTHER_NAMES = {
    "max_completion_tokens": "max_tokens, or max_output_tokens for a response",
    "max_output_tokens": "max_tokens",
    "max_tokens": "max_output_tokens",
    "reasoning": "reasoning_effort",
    "response_format": "text.format, or /v1/chat/completions",
}
"""Fields of another path that have another name here."""
_NOTHING: tuple[Any, ...] = (False, 0, 0.0, "", [], {})
_DEFAULTS: dict[str, tuple[Any, ...]] = {
    "add_generation_prompt": (True,), "include_reasoning": (True,), "n": (1,), "parallel_tool_calls": (True,),
    "repetition_penalty": (1, 1.0), "skip_special_tokens": (True,), "tool_choice": ("auto", "none"),
}  # fmt: skip
"""Values besides nothing that mean nothing."""


def check_names(body: dict[str, Any], kind: type[msgspec.Struct]) -> list[str]:
    """Return the names of a body's fields that are ignored.

    Raises ApiError for a field of `REFUSED` and for one that only another path honours, unless it is null.
    """
    honoured = set(honoured_fields(kind))
    refused = _siblings(kind) | REFUSED
    for name in body.keys() - honoured:
        if name in refused and body[name] is not None:
            remedy, neutral = refused[name]
            if not any(type(body[name]) is type(value) and body[name] == value for value in neutral):
                raise refuse(f"`{name}` is not supported here. {remedy}", param=name, code="unsupported_parameter")
    return sorted(str(name)[:100] for name in body.keys() - honoured if body[name] is not None and name not in refused)


def honoured_fields(kind: type[msgspec.Struct]) -> tuple[str, ...]:
    """Return the fields of a body that are honoured, as they are spelled in JSON."""
    return kind.__struct_encode_fields__  # `structs.fields` evaluates all annotations, for a millisecond


def refused_fields(kind: type[msgspec.Struct]) -> dict[str, str]:
    """Return the fields that a body of this kind refuses -> what to do instead."""
    honoured, refused = set(honoured_fields(kind)), _siblings(kind) | REFUSED
    return {name: remedy for name, (remedy, _) in refused.items() if name not in honoured}


@lru_cache
def _siblings(kind: type[msgspec.Struct]) -> dict[str, tuple[str, tuple[Any, ...]]]:
    """Return the fields that only other paths honour: what to do instead, and the values that pass."""
    if not issubclass(kind, (ChatOptions, CompletionBody, ResponsesBody)):
        return {}
    own = honoured_fields(kind)
    homes = {name: path for path, body in _PATHS.items() for name in honoured_fields(body) if name not in own}
    return {
        name: (f"Use {_OTHER_NAMES.get(name, path)}", (*_NOTHING, *_DEFAULTS.get(name, ())))
        for name, path in homes.items()
    }

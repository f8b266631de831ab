"""Texts to ids and back, and the tokenizer's settings: /tokenize, /detokenize and /tokenizer_info, as in vLLM."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from ...errors import ExpertFlowError
from ..text.conversation import read_conversation
from ..text.tokenizer import named_tokens, read_settings
from .bodies import DetokenizeBody, TokenizeBody
from .call import check_text
from .chat_prompt import template_tools
from .errors import refuse, to_api_error
from .model import ServedModel


class TokenizeAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Answer of /tokenize. `max_model_len`: positions of the model's context."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None | UnsetType = UNSET


class DetokenizeAnswer(msgspec.Struct, frozen=True):
    """Answer of /detokenize."""

    prompt: str


def tokenize(body: TokenizeBody, model: ServedModel) -> TokenizeAnswer:
    """Return the ids of a text, or of a conversation in the chat template. Raises ApiError."""
    model.require(body.model)
    if (body.prompt is None) == (body.messages is None):
        raise refuse("Give one of prompt and messages", param="prompt")
    try:
        ids = _encode(body, model)
    except ExpertFlowError as error:
        raise to_api_error(error) from error
    texts = [model.codec.token_name(token) for token in ids] if body.return_token_strs else UNSET
    return TokenizeAnswer(count=len(ids), max_model_len=model.facts.context, tokens=ids, token_strs=texts)


def detokenize(body: DetokenizeBody, model: ServedModel) -> DetokenizeAnswer:
    """Return the text of ids, special tokens included. Raises ApiError."""
    model.require(body.model)
    if not model.codec.available:
        raise to_api_error(model.codec.missing())
    if any(token >= model.facts.vocabulary for token in body.tokens):
        raise refuse(f"tokens: ids must be below {model.facts.vocabulary}", param="tokens")
    return DetokenizeAnswer(model.codec.decode(body.tokens, special_tokens=True))


def tokenizer_info(model: ServedModel) -> dict[str, Any]:
    """Return tokenizer_config.json with the named special tokens and the chat template. Raises ApiError."""
    try:
        settings = {name: value for name, value in read_settings(model.folder).items() if _is_plain(value)}
        named = named_tokens(model.folder)
    except ExpertFlowError as error:
        raise to_api_error(error) from error
    template = {"chat_template": model.codec.chat_template} if model.codec.chat_template else {}
    return {"tokenizer_class": "PreTrainedTokenizerFast", **settings, **named, **template}


def _encode(body: TokenizeBody, model: ServedModel) -> list[int]:
    if body.messages is None:
        text = check_text(body.prompt or "", model, "prompt")
        return model.codec.encode(text, body.add_special_tokens is not False)
    conversation = read_conversation(
        body.messages,
        tools=template_tools(body.tools),
        add_generation_prompt=body.add_generation_prompt,
        chat_template_kwargs=body.chat_template_kwargs,
    )
    return model.codec.encode_chat(conversation)


def _is_plain(value: Any) -> bool:
    """Return whether JSON can carry the value: added tokens are objects of the library."""
    try:
        msgspec.json.encode(value)
    except TypeError:
        return False
    return True

"""The description of the API (OpenAPI 3.1), made from the structs that read and write it."""

from __future__ import annotations

from typing import Any

import msgspec

from ... import __version__
from .answers import ChatAnswer, CompletionAnswer
from .bodies import (
    PROMPT_SCHEMA,
    ChatBatchBody,
    ChatBody,
    CompletionBody,
    DetokenizeBody,
    ResponsesBody,
    TokenizeBody,
)
from .errors import ErrorAnswer
from .models import ModelCard, ModelList
from .responses_call import ResponseAnswer
from .tokens import DetokenizeAnswer, TokenizeAnswer

Struct = type[msgspec.Struct]
_POSTS: dict[str, tuple[str, Struct, Struct]] = {
    "/v1/completions": ("Continue prompts", CompletionBody, CompletionAnswer),
    "/v1/chat/completions": ("Answer a conversation", ChatBody, ChatAnswer),
    "/v1/chat/completions/batch": ("Answer several conversations, one choice each", ChatBatchBody, ChatAnswer),
    "/v1/responses": ("Answer a conversation, without memory", ResponsesBody, ResponseAnswer),
    "/tokenize": ("Turn a text or a conversation into ids", TokenizeBody, TokenizeAnswer),
    "/detokenize": ("Turn ids into text", DetokenizeBody, DetokenizeAnswer),
}
_GETS: dict[str, tuple[str, Struct | None]] = {
    "/v1/models": ("List the model", ModelList),
    "/v1/models/{model}": ("Show the model", ModelCard),
    "/tokenizer_info": ("Show the tokenizer's settings", None),
    "/health": ("Say whether the server and the engine live", None),
    "/ready": ("Say whether the model is loaded, or how far", None),
    "/version": ("Show the version", None),
}
OPEN_PATHS = frozenset({"/health", "/ready", "/version", "/metrics", "/openapi.json", "/", "/page/{file}"})
"""Paths that need no key: programs that watch a server have none, and the page asks for it."""
_ERRORS = {
    "400": "The body is wrong; `param` names the field",
    "401": "No key, or a wrong one",
    "404": "No such model or path",
    "405": "The path takes another method",
    "408": "The body took too long",
    "413": "The body is too large",
    "415": "The body is not application/json",
    "429": "Too many requests are open; Retry-After says when to try again",
    "500": "A fault of the server",
    "503": "The model is loading, or the engine has ended",
}
_STREAMED = ("/v1/completions", "/v1/chat/completions", "/v1/responses")


def describe(with_keys: bool) -> dict[str, Any]:
    """Return the description. `with_keys`: the server asks for one."""
    bodies = [part for _, body, answer in _POSTS.values() for part in (body, answer)]
    answers = [answer for _, answer in _GETS.values() if answer is not None]
    template = "#/components/schemas/{name}"
    _, schemas = msgspec.json.schema_components([*bodies, *answers, ErrorAnswer], ref_template=template)
    schemas["CompletionBody"]["properties"]["prompt"] = PROMPT_SCHEMA
    components: dict[str, Any] = {"schemas": schemas}
    if with_keys:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    posts = {path: {"post": _post(path, *parts)} for path, parts in _POSTS.items()}
    gets = {path: {"get": _get(path, *parts)} for path, parts in _GETS.items()}
    return {
        "openapi": "3.1.0",
        "info": {"title": "ExpertFlow", "version": __version__},
        "paths": posts | gets | {"/metrics": {"get": _metrics()}},
        "components": components,
        **({"security": [{"key": []}]} if with_keys else {}),
    }


def _post(path: str, summary: str, body: Struct, answer: Struct) -> dict[str, Any]:
    content = _json(answer) | ({"text/event-stream": {"schema": {"type": "string"}}} if path in _STREAMED else {})
    return {
        "summary": summary,
        "requestBody": {"required": True, "content": _json(body)},
        "responses": {"200": {"description": "The answer", "content": content}, **_errors(list(_ERRORS))},
    }


def _get(path: str, summary: str, answer: Struct | None) -> dict[str, Any]:
    content = _json(answer) if answer else {"application/json": {"schema": {"type": "object"}}}
    name = {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}
    return {
        "summary": summary,
        **({"security": []} if path in OPEN_PATHS else {}),
        **({"parameters": [name]} if "{model}" in path else {}),
        "responses": {
            "200": {"description": "The answer", "content": content},
            **_errors(["400", "401", "404", "405", "500", "503"]),
        },
    }


def _metrics() -> dict[str, Any]:
    content = {"text/plain": {"schema": {"type": "string"}}}
    return {
        "summary": "Show counters in Prometheus' text format",
        "security": [],
        "responses": {"200": {"description": "The metrics", "content": content}, **_errors(["405", "500", "503"])},
    }


def _errors(statuses: list[str]) -> dict[str, Any]:
    return {status: {"description": _ERRORS[status], "content": _json(ErrorAnswer)} for status in statuses}


def _json(struct: Struct) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{struct.__name__}"}}}

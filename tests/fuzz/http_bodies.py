"""Targets: bodies of every path of the HTTP server, as far as the requests that they become."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from expertflow.errors import ExpertFlowError
from expertflow.runtime.client.options import read_prompts
from expertflow.runtime.openai.bodies import DetokenizeBody, TokenizeBody
from expertflow.runtime.openai.endpoints import ENDPOINTS, prepare_call
from expertflow.runtime.openai.errors import ApiError
from expertflow.runtime.openai.model import ServedModel
from expertflow.runtime.openai.reading import read_body
from expertflow.runtime.openai.tokens import detokenize, tokenize
from expertflow.tests.fuzz.target import ClosingRead, Read, Target
from expertflow.tests.runtime.openai.models import NAME, make_model, save_model

SAMPLING: dict[str, Any] = {
    "model": NAME, "max_tokens": 3, "temperature": 0.5, "top_p": 0.9, "top_k": 3, "min_p": 0.1, "seed": 1, "n": 2,
    "stop": ["x"], "stop_token_ids": [3], "logit_bias": {"5": 1}, "min_tokens": 1, "presence_penalty": 0.5,
    "frequency_penalty": -0.5, "repetition_penalty": 1.1, "stream": True, "stream_options": {"include_usage": True},
    "priority": 1, "skip_special_tokens": False, "return_token_ids": True, "ignore_eos": True,
}  # fmt: skip
CHAT = [{"role": "system", "content": "Be"}, {"role": "user", "content": [{"type": "text", "text": "Hi"}]}]
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
CALLED = [
    {"role": "user", "content": "x"},
    {"role": "assistant", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "1", "content": "y"},
]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}
CHATS: list[dict[str, Any]] = [
    {"messages": CHAT, **SAMPLING},
    {"messages": CALLED, "logprobs": True, "top_logprobs": 2, "tools": TOOLS, "tool_choice": "auto"},
    {"messages": CHAT, "tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "f"}}},
    {"messages": CHAT, "chat_template_kwargs": {"effort": 1}, "documents": [{"text": "d"}], "max_completion_tokens": 2},
    {"messages": [{"role": "user", "content": [IMAGE]}]},
]
RESPONSES: list[dict[str, Any]] = [
    {"input": "Hi", "instructions": "Be", "max_output_tokens": 2, "text": {"format": {"type": "text"}}},
    {"input": [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "x"}]}], "stream": True},
    {"input": [{"type": "function_call_output", "call_id": "1", "output": "y"}], "temperature": 0.2},
]
BODIES: dict[str, list[dict[str, Any]]] = {
    "/v1/completions": [
        {"prompt": "Hi", **SAMPLING},
        {"prompt": [[1, 2], [3]], "echo": True, "logprobs": 2, "prompt_logprobs": 1},
        {"prompt": ["a", "b"], "max_tokens": 0, "echo": True, "logprobs": 0, "add_special_tokens": False},
        {"prompt": [5], "response_format": {"type": "json_object"}, "return_routed_experts": True},
    ],
    "/v1/chat/completions": CHATS,
    "/v1/chat/completions/batch": [{"messages": [CHAT, CHAT], "max_tokens": 2}],
    "/v1/responses": RESPONSES,
}
TOKENIZE = [{"prompt": "x", "return_token_strs": True}, {"messages": CHAT, "add_generation_prompt": True}]
DETOKENIZE = [{"tokens": [1, 2, 256]}]


def body_targets() -> list[Target]:
    """Return a target for each path that takes a body."""
    return [
        *(_target(path, partial(_read_call, path), BODIES[path]) for path in ENDPOINTS),
        _target("/tokenize", _read_tokenize, TOKENIZE),
        _target("/detokenize", _read_detokenize, DETOKENIZE),
    ]


def _target(path: str, read: Callable[[ServedModel, bytes], object], bodies: list[dict[str, Any]]) -> Target:
    return Target(f"POST {path}", partial(_prepare, read), partial(_dumped, bodies), (ApiError,), "json")


def _dumped(bodies: list[dict[str, Any]]) -> list[bytes]:
    return [json.dumps(body).encode() for body in bodies]


def _prepare(read: Callable[[ServedModel, bytes], object], folder: Path) -> Read:
    model = make_model(save_model(folder))
    return ClosingRead(partial(read, model), model.codec.close)


def _read_call(path: str, model: ServedModel, data: bytes) -> object:
    """Read a body and its requests as the server does, up to where the client sends them."""
    call = prepare_call(path, data, model)
    try:
        return read_prompts(call.requests)
    except ExpertFlowError as error:
        return call.error(error)


def _read_tokenize(model: ServedModel, data: bytes) -> object:
    return tokenize(read_body(data, TokenizeBody)[0], model)


def _read_detokenize(model: ServedModel, data: bytes) -> object:
    return detokenize(read_body(data, DetokenizeBody)[0], model)

"""Bodies that are read. A field left out or null has OpenAI's or vLLM's default."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

Count = Annotated[int, Meta(ge=1, le=128)]
Tokens = Annotated[int, Meta(ge=0, le=2**31)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Whole = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Ids = list[Annotated[int, Meta(ge=0)]]
PROMPT_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "items": {"type": "string"}},
        {"type": "array", "items": {"type": "integer", "minimum": 0}},
        {"type": "array", "items": {"type": "array", "items": {"type": "integer", "minimum": 0}}},
    ]
}
"""JSON schema of `CompletionBody.prompt`; msgspec knows one kind of list a field."""


class StreamOptions(msgspec.Struct, frozen=True):
    """Options of a stream."""

    include_usage: bool | None = None
    """Send the usage in a last chunk without choices, and `usage: null` before."""
    continuous_usage_stats: bool | None = None
    """Send the usage so far in every chunk."""


class StructuredBody(msgspec.Struct, frozen=True):
    """Rule that the output follows: exactly one of these."""

    json: dict[str, Any] | str | None = None
    """JSON schema."""
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    """Lark grammar."""
    json_object: bool | None = None


class JsonSchema(msgspec.Struct, frozen=True):
    """Named schema of a response format."""

    name: str = ""
    description: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class ResponseFormat(msgspec.Struct, frozen=True):
    """Format of the output: text, any JSON object, or JSON of a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class SamplingBody(msgspec.Struct, frozen=True, kw_only=True):
    """Fields that completions and chats share."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Count | None = None
    max_tokens: Tokens | None = None
    temperature: Annotated[float, Meta(ge=0, le=100)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=2**31)] | None = None
    """0 or -1 does not restrict."""
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    seed: Whole | None = None
    """Choice i of a prompt samples with seed + i."""
    stop: str | list[str] | None = None
    stop_token_ids: Ids | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    min_tokens: Tokens | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Meta(gt=0)] | None = None
    logit_bias: dict[str, float] | None = None
    prompt_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredBody | None = None
    priority: Whole | None = None
    """Lower starts first."""
    skip_special_tokens: bool | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    return_routed_experts: bool | None = None
    """Return `routed_experts` for each choice: base64 of a .npy file [tokens - 1, MoE layers, top-k]."""
    routed_experts_prompt_start: Tokens | None = None
    """Leave out the first N prompt tokens of `routed_experts`."""
    batch_invariant: bool | None = None
    """Let the result depend on no other request (docs/exactness.md)."""


class CompletionBody(SamplingBody, frozen=True, kw_only=True):
    """Body of /v1/completions."""

    prompt: str | list[Any]
    """A text, token ids, or a list of either (`PROMPT_SCHEMA`)."""
    echo: bool | None = None
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    add_special_tokens: bool | None = None


class Function(msgspec.Struct, frozen=True):
    """Function that the model may call."""

    name: Annotated[str, Meta(min_length=1, max_length=256)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(msgspec.Struct, frozen=True):
    """Tool that the model may call."""

    type: Literal["function"]
    function: Function


class FunctionName(msgspec.Struct, frozen=True):
    """Name of a function."""

    name: str


class ToolChoice(msgspec.Struct, frozen=True):
    """The tool that the model must call."""

    type: Literal["function"]
    function: FunctionName


class ChatOptions(SamplingBody, frozen=True, kw_only=True):
    """Fields that chats and batches of chats share."""

    max_completion_tokens: Tokens | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    """False: at most one call an answer."""
    include_reasoning: bool | None = None
    """False: leave the reasoning out of the answer."""
    reasoning_effort: str | None = None
    """Given to the chat template."""
    chat_template_kwargs: dict[str, Any] | None = None
    documents: list[dict[str, Any]] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None


class ChatBody(ChatOptions, frozen=True, kw_only=True):
    """Body of /v1/chat/completions."""

    messages: Annotated[list[dict[str, Any]], Meta(min_length=1)]


class ChatBatchBody(ChatOptions, frozen=True, kw_only=True):
    """Body of /v1/chat/completions/batch: one choice for each conversation."""

    messages: Annotated[list[Annotated[list[dict[str, Any]], Meta(min_length=1)]], Meta(min_length=1)]


class TextFormat(msgspec.Struct, frozen=True):
    """`text.format` of a response."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: str = ""
    schema: dict[str, Any] | None = None
    strict: bool | None = None
    description: str | None = None


class TextOptions(msgspec.Struct, frozen=True):
    """`text` of a response."""

    format: TextFormat | None = None
    verbosity: str | None = None


class Reasoning(msgspec.Struct, frozen=True):
    """`reasoning` of a response: its effort is given to the chat template."""

    effort: str | None = None
    summary: str | None = None
    generate_summary: str | None = None


class ResponsesBody(msgspec.Struct, frozen=True, kw_only=True):
    """Body of /v1/responses, the part of it that needs no memory of the server."""

    input: str | Annotated[list[dict[str, Any]], Meta(min_length=1)]
    model: str | None = None
    instructions: str | None = None
    include: list[str] | None = None
    stream: bool | None = None
    max_output_tokens: Annotated[int, Meta(ge=1, le=2**31)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=100)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=2**31)] | None = None
    seed: Whole | None = None
    text: TextOptions | None = None
    reasoning: Reasoning | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    priority: Whole | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class TokenizeBody(msgspec.Struct, frozen=True, kw_only=True):
    """Body of /tokenize: a text or a conversation."""

    model: str | None = None
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    tools: list[Tool] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    return_token_strs: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class DetokenizeBody(msgspec.Struct, frozen=True, kw_only=True):
    """Body of /detokenize."""

    tokens: Ids
    model: str | None = None

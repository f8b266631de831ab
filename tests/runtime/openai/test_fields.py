"""The three lists of fields are disjoint, complete and documented."""

from __future__ import annotations

import json
import re
from pathlib import Path

import expertflow
import msgspec
import pytest
from expertflow.runtime.openai.bodies import (
    ChatBatchBody,
    ChatBody,
    CompletionBody,
    DetokenizeBody,
    ResponsesBody,
    TokenizeBody,
)
from expertflow.runtime.openai.errors import ApiError
from expertflow.runtime.openai.fields import HARMLESS, REFUSED, check_names, honoured_fields, refused_fields
from expertflow.runtime.openai.openapi import describe
from expertflow.runtime.openai.sampling import OPTIONS

PAGE = (Path(expertflow.__file__).parent / "docs" / "http.md").read_text()
PATHS: dict[str, type[msgspec.Struct]] = {
    "/v1/completions": CompletionBody,
    "/v1/chat/completions": ChatBody,
    "/v1/responses": ResponsesBody,
}
KINDS = [CompletionBody, ChatBody, ChatBatchBody, ResponsesBody, TokenizeBody, DetokenizeBody]
OFFICIAL = {
    "completions": "model prompt best_of echo frequency_penalty logit_bias logprobs max_tokens n presence_penalty seed "
    "stop stream stream_options suffix temperature top_p user",
    "chat": "messages model audio frequency_penalty function_call functions logit_bias logprobs max_completion_tokens "
    "max_tokens metadata modalities n parallel_tool_calls prediction presence_penalty prompt_cache_key "
    "reasoning_effort response_format safety_identifier seed service_tier stop store stream stream_options temperature "
    "tool_choice tools top_logprobs top_p user verbosity web_search_options",
    "responses": "background conversation include input instructions max_output_tokens max_tool_calls metadata model "
    "parallel_tool_calls previous_response_id prompt prompt_cache_key reasoning safety_identifier service_tier store "
    "stream temperature text tool_choice tools top_p truncation user",
}
"""Fields of OpenAI's own API, as its client names them."""


def section(title: str) -> str:
    return PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_field_is_in_one_list(kind: type[msgspec.Struct]) -> None:
    honoured, refused = set(honoured_fields(kind)), set(refused_fields(kind))
    assert not honoured & HARMLESS and not honoured & refused and not refused & HARMLESS


@pytest.mark.parametrize("name,kind", list(zip(OFFICIAL, PATHS.values(), strict=True)))
def test_every_field_of_the_api_is_in_a_list(name: str, kind: type[msgspec.Struct]) -> None:
    """Whoever reads the lists must find what they know."""
    known = {*honoured_fields(kind), *HARMLESS, *refused_fields(kind)}
    assert set(OFFICIAL[name].split()) - known == set()


@pytest.mark.parametrize("path", PATHS)
def test_the_page_lists_what_is_honoured(path: str) -> None:
    rows = dict(re.findall(r"^\| `(/\S+)` \| (.*) \|$", section("Fields that are honoured"), re.MULTILINE))
    assert re.findall(r"`(\w+)`", rows[path]) == list(honoured_fields(PATHS[path]))


def test_the_page_lists_what_is_ignored_and_refused() -> None:
    assert set(re.findall(r"`(\w+)`", section("Fields that are ignored").partition("\n\n")[0])) == HARMLESS
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", section("Fields that are refused"), re.MULTILINE))
    assert rows == {name: remedy for name, (remedy, _) in REFUSED.items()}


def test_every_option_is_a_field() -> None:
    assert set(OPTIONS) <= set(honoured_fields(CompletionBody)) & set(honoured_fields(ChatBody))


def test_a_neutral_value_must_have_the_type_too() -> None:
    """0 is not false, and 1 is not true."""
    assert check_names({"use_beam_search": False}, ChatBody) == []
    with pytest.raises(Exception, match="use_beam_search"):
        check_names({"use_beam_search": 0}, ChatBody)


def test_what_only_another_path_honours_is_refused_unless_it_means_nothing() -> None:
    """Ignored, it would change the answer without a word."""
    for kind, name, neutral, value in (
        (CompletionBody, "max_completion_tokens", None, 5), (CompletionBody, "tools", [], [{"type": "function"}]),
        (CompletionBody, "tool_choice", "auto", "required"), (ChatBody, "echo", False, True),
        (ResponsesBody, "stop", [], "a"), (ResponsesBody, "n", 1, 2), (ResponsesBody, "presence_penalty", 0, 1),
        (ResponsesBody, "top_logprobs", 0, 2),
    ):  # fmt: skip
        assert check_names({name: neutral}, kind) == []
        with pytest.raises(ApiError, match=name):
            check_names({name: value}, kind)
    assert check_names({"stop": "a"}, DetokenizeBody) == ["stop"]
    assert refused_fields(ResponsesBody)["stop"] == "Use /v1/chat/completions"


def test_the_description_is_whole() -> None:
    """Each reference leads to a schema, and prompts of every shape are described."""
    text = json.dumps(description := describe(with_keys=True))
    named = set(re.findall(r'"\$ref": "#/components/schemas/(\w+)"', text))
    assert named <= description["components"]["schemas"].keys() and description["security"] == [{"key": []}]
    assert len(description["components"]["schemas"]["CompletionBody"]["properties"]["prompt"]["anyOf"]) == 4
    assert {"/v1/completions", "/v1/models/{model}", "/metrics"} <= description["paths"].keys()

"""Bodies of /v1/chat/completions and its batch form: to requests, and completions to messages and deltas."""

from __future__ import annotations

import base64
import dataclasses
import json
from typing import Any

import msgspec
import pytest
from expertflow.runtime.client.images import ImagePrompt
from expertflow.runtime.openai.chat_call import ChatCall
from expertflow.runtime.openai.endpoints import CHATS, prepare_call
from expertflow.runtime.openai.errors import ApiError
from expertflow.runtime.openai.model import ServedModel
from expertflow.tests.runtime.openai.models import CONTEXT, complete, events_of, make_model, read_sse, save_model

HI = [{"role": "user", "content": "Hi"}]
BATCH = "/v1/chat/completions/batch"
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
ADD = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'


def call_of(model: ServedModel, path: str = CHATS, /, **body: Any) -> ChatCall:
    call = prepare_call(path, msgspec.json.encode({"messages": HI, **body}), model)
    assert isinstance(call, ChatCall)
    return call


def fault_of(model: ServedModel, path: str = CHATS, /, **body: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        call_of(model, path, **body)
    return caught.value


def text_of(model: ServedModel, /, **body: Any) -> str:
    prompt = call_of(model, **body).requests[0].prompt
    assert isinstance(prompt, list)
    return model.codec.decode(prompt, special_tokens=True)


def stream_of(call: ChatCall, model: ServedModel, text: str, size: int = 3, reason: str = "stop") -> list[Any]:
    done = complete(model, [5], text, reason)
    writer = call.writer()
    chunks = [chunk for event in events_of(done, model, size=size) for chunk in writer.on_event(event)]
    return read_sse([*chunks, *writer.end([done])])


def test_messages_go_through_the_template(model: ServedModel) -> None:
    system = {"role": "system", "content": [{"type": "text", "text": "Be"}, {"type": "text", "text": "brief"}]}
    assert text_of(model, messages=[system, *HI]) == "system: Be\nbrief\nuser: Hi\nassistant: "
    assert text_of(model, chat_template_kwargs={"effort": "low"}).endswith("(low) assistant: ")
    assert text_of(model, reasoning_effort="high").endswith("(high) assistant: ")
    assert text_of(model, documents=[{"title": "t", "text": "Read me"}]).startswith("Read me\n")
    assert text_of(model, add_generation_prompt=False) == "user: Hi\n"
    go_on = [*HI, {"role": "assistant", "content": "Well"}]
    assert text_of(model, messages=go_on, continue_final_message=True) == "user: Hi\nassistant: Well"


def test_the_longest_output_fits_the_context(model: ServedModel) -> None:
    (request,) = call_of(model).requests
    assert request.max_new_tokens == CONTEXT - len("user: Hi\nassistant: ")
    short = dataclasses.replace(model, default_max_tokens=9)
    assert call_of(short).requests[0].max_new_tokens == 9
    assert call_of(model, max_tokens=5).requests[0].max_new_tokens == 5
    assert call_of(model, max_tokens=5, max_completion_tokens=6).requests[0].max_new_tokens == 6


def test_images_come_as_data_urls(model: ServedModel) -> None:
    url = "data:image/png;base64," + base64.b64encode(b"png").decode()
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What?"}]
    prompt = call_of(model, messages=[{"role": "user", "content": parts}]).requests[0].prompt
    assert isinstance(prompt, ImagePrompt) and prompt.images == [b"png"] and prompt.text.startswith("user: ")
    parts[0]["image_url"] = {"url": "https://example.com/cat.png"}
    error = fault_of(model, messages=[{"role": "user", "content": parts}])
    assert error.status == 400 and error.param == "messages[0].content[0]"


@pytest.mark.parametrize(
    "body,param",
    [
        ({"messages": []}, "messages"),
        ({"messages": "Hi"}, "messages"),
        ({"messages": [{"content": "Hi"}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages[0].content[0]"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": 3}, "logprobs"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"chat_template": "{{ x }}"}, "chat_template"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
        ({"messages": [{"role": "user", "content": "a" * 1000}]}, "messages"),
    ],
)
def test_wrong_bodies_are_refused_by_name(model: ServedModel, body: dict[str, Any], param: str) -> None:
    error = fault_of(model, **body)
    assert (error.status, error.param) == (400, param), error.message


def test_a_model_without_a_template_is_never_guessed(tmp_path_factory: pytest.TempPathFactory) -> None:
    model = make_model(save_model(tmp_path_factory.mktemp("bare"), template=None))
    error = fault_of(model)
    assert error.status == 400 and error.code == "chat_template" and "no chat template" in error.message


def test_an_answer_is_a_message(model: ServedModel) -> None:
    call = call_of(model, n=2)
    prompt = call.requests[0].prompt
    assert isinstance(prompt, list)
    answer = msgspec.to_builtins(call.answer([complete(model, prompt, text, "stop") for text in ("Yes", "No")]))
    assert [choice["message"] for choice in answer["choices"]] == [
        {"role": "assistant", "content": text, "refusal": None} for text in ("Yes", "No")
    ]
    assert answer["usage"]["prompt_tokens"] == len(prompt) and answer["usage"]["completion_tokens"] == 5
    assert answer["object"] == "chat.completion" and answer["choices"][0]["finish_reason"] == "stop"


def test_a_batch_has_a_choice_for_each_conversation(model: ServedModel) -> None:
    call = call_of(model, BATCH, messages=[HI, [{"role": "user", "content": "Bye"}]])
    done = [complete(model, [5] * (3 + i), text) for i, text in enumerate(("Hello", "Ciao"))]
    answer = call.answer(done)
    assert [choice.message.content for choice in answer.choices] == ["Hello", "Ciao"]
    assert answer.usage.prompt_tokens == 7
    for body in ({"stream": True}, {"n": 2}, {"tools": [TOOL]}):
        error = fault_of(model, BATCH, messages=[HI], **body)
        assert error.status == 400 and error.param == next(iter(body))


def test_a_stream_begins_with_the_role_and_ends_with_the_reason(model: ServedModel) -> None:
    first, *pieces, usage, end = stream_of(
        call_of(model, stream=True, stream_options={"include_usage": True}), model, "Hello"
    )
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(piece["choices"][0]["delta"].get("content", "") for piece in pieces) == "Hello"
    assert [piece["choices"][0]["finish_reason"] for piece in pieces] == [None, "stop"]
    assert usage["choices"] == [] and usage["usage"]["completion_tokens"] == 5 and end == "[DONE]"
    assert {piece["id"] for piece in (first, *pieces)} == {first["id"]}


def test_reasoning_stands_under_both_names(hermes: ServedModel) -> None:
    call = call_of(hermes)
    done = complete(hermes, [5], "<think>\nhm\n</think>\n\nYes")
    message = msgspec.to_builtins(call.answer([done]))["choices"][0]["message"]
    assert (message["content"], message["reasoning"], message["reasoning_content"]) == ("Yes", "hm", "hm")
    deltas = [piece["choices"][0]["delta"] for piece in stream_of(call, hermes, done.text)[:-1]]
    assert "".join(delta.get("reasoning", "") for delta in deltas) == "hm"
    assert "".join(delta.get("content", "") for delta in deltas) == "Yes"
    hidden = call_of(hermes, include_reasoning=False)
    assert "reasoning" not in msgspec.to_builtins(hidden.answer([done]))["choices"][0]["message"]


def test_calls_of_tools_are_read(hermes: ServedModel) -> None:
    call = call_of(hermes, tools=[TOOL])
    choice = call.answer([complete(hermes, [5], ADD + ADD, "stop")]).choices[0]
    assert choice.finish_reason == "tool_calls" and choice.message.content is None
    assert [(each.function.name, each.function.arguments) for each in choice.message.tool_calls or []] == [
        ("add", '{"a": 1}')
    ] * 2
    deltas = [piece["choices"][0] for piece in stream_of(call, hermes, "So: " + ADD + ADD)[:-1]]
    calls = [each for delta in deltas for each in delta["delta"].get("tool_calls", [])]
    assert [each["index"] for each in calls if "id" in each] == [0, 1] and deltas[-1]["finish_reason"] == "tool_calls"
    assert [each["function"]["name"] for each in calls if "id" in each] == ["add", "add"]
    assert all(set(each) == {"index", "function"} and set(each["function"]) == {"arguments"} for each in calls[1:3])
    for index in (0, 1):
        pieces = [each["function"]["arguments"] for each in calls if each["index"] == index]
        assert len(pieces) > 1 and json.loads("".join(pieces)) == {"a": 1}
    assert "".join(delta["delta"].get("content", "") for delta in deltas) == "So:"


def test_a_call_that_is_cut_off_ends_by_length(hermes: ServedModel) -> None:
    """Its arguments are no JSON: the client must not take them for whole."""
    call = call_of(hermes, tools=[TOOL])
    choice = call.answer([complete(hermes, [5], ADD[: ADD.index("1}")], "length")]).choices[0]
    assert choice.finish_reason == "length" and choice.message.tool_calls
    assert choice.message.tool_calls[0].function.arguments == '{"a": '


def test_one_call_is_kept_of_several_if_asked(hermes: ServedModel) -> None:
    call = call_of(hermes, tools=[TOOL], parallel_tool_calls=False)
    assert len(call.answer([complete(hermes, [5], ADD + ADD, "stop")]).choices[0].message.tool_calls or []) == 1
    pieces = [piece["choices"][0]["delta"] for piece in stream_of(call, hermes, ADD + ADD)[:-1]]
    calls = [each for delta in pieces for each in delta.get("tool_calls", [])]
    assert [each["index"] for each in calls if "id" in each] == [0] and {each["index"] for each in calls} == {0}
    assert json.loads("".join(each["function"]["arguments"] for each in calls)) == {"a": 1}


def test_without_tools_a_call_is_text(hermes: ServedModel) -> None:
    for body in ({}, {"tools": [TOOL], "tool_choice": "none"}):
        call = call_of(hermes, **body)
        assert call.answer([complete(hermes, [5], ADD)]).choices[0].message.content == ADD
        assert "# Tools" not in text_of(hermes, **body)
    assert "# Tools" in text_of(hermes, tools=[TOOL], max_tokens=1)

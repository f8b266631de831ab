"""Bodies of /v1/responses: translated to a chat and back."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from expertflow.runtime.openai.endpoints import prepare_call
from expertflow.runtime.openai.errors import ApiError
from expertflow.runtime.openai.model import ServedModel
from expertflow.runtime.openai.responses_call import ResponsesCall
from expertflow.tests.runtime.openai.models import complete, events_of, read_sse

PATH = "/v1/responses"
ADD = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
TOOL = {"type": "function", "name": "add", "parameters": {"type": "object", "properties": {}}, "strict": True}


def call_of(model: ServedModel, /, **body: Any) -> ResponsesCall:
    call = prepare_call(PATH, msgspec.json.encode({"input": "Hi", **body}), model)
    assert isinstance(call, ResponsesCall)
    return call


def text_of(model: ServedModel, /, **body: Any) -> str:
    prompt = call_of(model, **body).requests[0].prompt
    assert isinstance(prompt, list)
    return model.codec.decode(prompt, special_tokens=True)


def stream_of(call: ResponsesCall, model: ServedModel, text: str) -> list[Any]:
    done = complete(model, [5], text, "stop")
    writer = call.writer()
    chunks = [chunk for event in events_of(done, model, size=4) for chunk in writer.on_event(event)]
    return read_sse([*chunks, *writer.end([done])])


def test_input_becomes_a_conversation(model: ServedModel) -> None:
    assert text_of(model) == "user: Hi\nassistant: "
    assert text_of(model, instructions="Be brief").startswith("system: Be brief\nuser: Hi")
    items = [
        {"role": "developer", "content": "Rules"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
        {"type": "reasoning", "summary": []},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Yo"}]},
        {"role": "user", "content": "Again"},
    ]
    assert text_of(model, input=items) == "system: Rules\nuser: Hi\nassistant: Yo\nuser: Again\nassistant: "


def test_calls_and_their_outputs_become_messages(hermes: ServedModel) -> None:
    items = [
        {"role": "user", "content": "Add"},
        {"type": "function_call", "call_id": "c1", "name": "add", "arguments": '{"a": 1}'},
        {"type": "function_call_output", "call_id": "c1", "output": "2"},
    ]
    text = text_of(hermes, input=items)
    assert '{"name": "add", "arguments": {"a": 1}}' in text and "<tool_response>\n2\n</tool_response>" in text


@pytest.mark.parametrize(
    "body,param",
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"background": True}, "background"),
        ({"input": []}, "input"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"stop": "a"}, "stop"),
        ({"max_tokens": 5}, "max_tokens"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"include": ["message.output_text.logprobs"]}, "include"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"instructions": "x", "input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input"),
        ({"text": {"format": {"type": "json_schema", "name": "a"}}}, "text.format"),
    ],
)
def test_what_needs_a_memory_is_refused(model: ServedModel, body: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        call_of(model, **body)
    assert (caught.value.status, caught.value.param) == (400, param)


def test_an_answer_has_items(hermes: ServedModel) -> None:
    call = call_of(hermes, tools=[TOOL], max_output_tokens=50)
    text = "<think>hm</think>So " + ADD
    answer = call.answer([complete(hermes, [5, 6], text, "stop")])
    assert [item["type"] for item in answer.output] == ["reasoning", "message", "function_call"]
    assert answer.output[1]["content"][0]["text"].strip() == "So" and answer.output[2]["arguments"] == '{"a": 1}'
    assert answer.status == "completed" and answer.usage is not None and answer.usage.input_tokens == 2
    cut = call.answer([complete(hermes, [5], "So", "length")])
    assert cut.status == "incomplete" and cut.incomplete_details == {"reason": "max_output_tokens"}


@pytest.mark.parametrize("text", ["Hello you", "<think>hm</think>So " + ADD, "<think>hm</think>" + ADD, "", ADD])
def test_a_stream_adds_up_to_the_answer(hermes: ServedModel, text: str) -> None:
    call = call_of(hermes, stream=True, tools=[TOOL])
    events = stream_of(call, hermes, text)
    whole = call.answer([complete(hermes, [5], text, "stop")])
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
    final = events[-1]["response"]
    assert events[-1]["type"] == "response.completed"
    assert [item["type"] for item in final["output"]] == [item["type"] for item in whole.output]
    deltas = "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")
    said = "".join(item["content"][0]["text"] for item in final["output"] if item["type"] == "message")
    assert deltas == said
    done = [event for event in events if event["type"] == "response.output_item.done"]
    assert [event["item"] for event in done] == final["output"]
    assert [event["output_index"] for event in done] == list(range(len(done)))

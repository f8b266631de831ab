"""Parsers of answers: reasoning, content and calls, the same however the text is cut into pieces."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from expertflow.errors import RequestError, UsageError
from expertflow.runtime.text.answers.forced import ForcedCallsParser, forced_calls_schema
from expertflow.runtime.text.answers.formats import AnswerFormat, detect_format, named_format
from expertflow.runtime.text.answers.parts import AnswerParser, AnswerParts, ToolCall, parse_answer
from hypothesis import given
from hypothesis import strategies as st

TEMPLATES = Path(__file__).parents[2] / "data" / "chat_templates"
ADD = ToolCall("add", '{"a": 1, "b": "é"}')
SUB = ToolCall("sub", "{}")
_ADD, _SUB = '{"name": "add", "arguments": {"a": 1, "b": "é"}}', '{"name": "sub", "arguments": {}}'
_DEEP = "<｜tool▁calls▁begin｜>{}<｜tool▁calls▁end｜>"
_CALL = "<｜tool▁call▁begin｜>{}<｜tool▁sep｜>{}<｜tool▁call▁end｜>"
_FENCED = 'function<｜tool▁sep｜>add\n```json\n{"a": 1, "b": "é"}\n```'
_JSON = '<|channel|>commentary to=functions.add <|constrain|>json<|message|>{"a": 1, "b": "é"}<|call|>'

ANSWERS: list[tuple[str, str, AnswerParts]] = [
    ("none", "a <tool_call> b ", AnswerParts("a <tool_call> b ")),
    ("none", "<think>\nwhy </think> not\n</think>\n\nno ", AnswerParts("not\n</think>\n\nno ", "why")),
    ("none", " \n<think>never ended ", AnswerParts("", "never ended")),
    ("none", "text <think>a</think>", AnswerParts("text <think>a</think>")),
    ("none", "<thin", AnswerParts("<thin")),
    ("hermes", "  so \n", AnswerParts("  so \n")),
    ("hermes", f"<tool_call>\n{_ADD}\n</tool_call>", AnswerParts(calls=[ADD])),
    (
        "hermes",
        f"<think>\nhm\n</think>\n\nYes.\n<tool_call>\n{_ADD}\n</tool_call>\n<tool_call>\n{_SUB}\n</tool_call>\nDone ",
        AnswerParts("Yes.Done ", "hm", [ADD, SUB]),
    ),
    ("hermes", f"<tool_call>{_ADD}", AnswerParts(calls=[ADD])),
    ("hermes", f"<tool_call>{_ADD}<tool_call>{_SUB}</tool_call>", AnswerParts(calls=[ADD, SUB])),
    ("hermes", "a <tool_call>{oops</tool_call> b", AnswerParts("a <tool_call>{oops</tool_call> b")),
    ("hermes", '<tool_call>["x"]</tool_call>', AnswerParts('<tool_call>["x"]</tool_call>')),
    ("hermes", '<tool_call>{"name": "add", "arg', AnswerParts('<tool_call>{"name": "add", "arg')),
    ("hermes", "a </tool_call> b", AnswerParts("a </tool_call> b")),
    ("mistral", f"[TOOL_CALLS][{_ADD}, {_SUB}]", AnswerParts(calls=[ADD, SUB])),
    ("mistral", 'x[TOOL_CALLS]add[ARGS]{"a": 1, "b": "é"}[TOOL_CALLS]sub[ARGS]{}', AnswerParts("x", "", [ADD, SUB])),
    ("mistral", "[TOOL_CALLS]?", AnswerParts("[TOOL_CALLS]?")),
    ("deepseek", "so" + _DEEP.format(_CALL.format("add", ADD.arguments)), AnswerParts("so", "", [ADD])),
    ("deepseek", _DEEP.format(f"<｜tool▁call▁begin｜>{_FENCED}<｜tool▁call▁end｜>"), AnswerParts(calls=[ADD])),
    ("deepseek", _DEEP.format("?"), AnswerParts(_DEEP.format("?"))),
    (
        "harmony",
        f"<|channel|>analysis<|message|>hm <|end|><|start|>assistant{_JSON}<|start|>assistant"
        "<|channel|>final<|message|>Two.<|return|>",
        AnswerParts("Two.", "hm ", [ADD]),
    ),
    ("harmony", " to=functions.sub<|channel|>commentary json<|message|>{}<|call|>", AnswerParts(calls=[SUB])),
    ("harmony", " to=browser<|channel|>commentary<|message|>{}<|call|>", AnswerParts()),
    ("harmony", "<|channel|>commentary<|message|>Wait", AnswerParts("Wait")),
    ("harmony", "no marker", AnswerParts("no marker")),
]


def parser(tools: str, streams: bool = False) -> AnswerParser:
    return AnswerFormat(tools, reasoning=tools != "harmony").parser("", reads_calls=True, streams_calls=streams)


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("tools,text,parts", ANSWERS, ids=[f"{tools} {i}" for i, (tools, *_) in enumerate(ANSWERS)])
def test_an_answer_is_taken_apart(tools: str, text: str, parts: AnswerParts, streams: bool) -> None:
    """What is no whole call stays text: nothing that the model wrote is lost."""
    assert parse_answer(parser(tools, streams), text) == parts


@given(st.sampled_from(ANSWERS), st.booleans(), st.data())
def test_the_parts_do_not_depend_on_the_pieces(
    answer: tuple[str, str, AnswerParts], streams: bool, data: st.DataObject
) -> None:
    """Tokens end anywhere, in the middle of markers, too."""
    tools, text, parts = answer
    reader, seen = parser(tools, streams), AnswerParts()
    while text:
        size = data.draw(st.integers(1, 9))
        seen += reader.feed(text[:size])
        text = text[size:]
    assert seen + reader.finish() == parts


PIECES = ["a", " ", "\n", "<think>", "</think>", "<tool_call>", "</tool_call>", _ADD, "<", "</tool"]


@given(st.lists(st.sampled_from(PIECES), max_size=8), st.booleans(), st.data())
def test_pieces_of_any_text_add_up(parts: list[str], streams: bool, data: st.DataObject) -> None:
    """Of texts that no model should write."""
    text = "".join(parts)
    whole, reader, seen = parse_answer(parser("hermes", streams), text), parser("hermes", streams), AnswerParts()
    while text:
        size = data.draw(st.integers(1, 9))
        seen += reader.feed(text[:size])
        text = text[size:]
    assert seen + reader.finish() == whole


LONG = '{"text": "a \\" } ] \\\\", "list": [{"b": "}"}], "n": {}}'
STREAMED: list[tuple[AnswerParser, str]] = [
    (parser("hermes", True), '<tool_call>\n{"name": "add", "arguments": %s}\n</tool_call>'),
    (parser("harmony", True), "<|channel|>commentary to=functions.add json<|message|>%s<|call|>"),
    (ForcedCallsParser("add", streams=True), "%s"),
    (ForcedCallsParser(streams=True), '[{"name":"add","arguments":%s}]'),
]


@pytest.mark.parametrize("reader,form", STREAMED, ids=["hermes", "harmony", "named", "required"])
def test_arguments_are_given_as_they_come(reader: AnswerParser, form: str) -> None:
    """A client shows a file while the model writes it. Each letter is given once, and none later than it must be."""
    given = [reader.feed(letter) for letter in form % LONG] + [reader.finish()]
    (name,) = [call.name for parts in given for call in parts.calls]
    pieces = [parts.call_text or "".join(call.arguments for call in parts.calls) for parts in given]
    assert name == "add" and "".join(pieces) == LONG and len([piece for piece in pieces if piece]) >= len(LONG) - 9
    assert not any(parts.content for parts in given)


def test_forced_calls_are_given_one_after_the_other() -> None:
    reader, seen = ForcedCallsParser(streams=True), AnswerParts()
    for letter in f"[{_ADD},{_SUB}]":
        seen += reader.feed(letter)
    assert seen + reader.finish() == AnswerParts(calls=[ADD, SUB])


@pytest.mark.parametrize("reader,text", [
    (parser("hermes", True), '<tool_call>{"name": "add", "arguments": {"a": '),
    (ForcedCallsParser("add", streams=True), '{"a": '),
    (ForcedCallsParser(streams=True), '[{"name":"add","arguments":{"a": '),
])  # fmt: skip
def test_a_streamed_call_that_is_cut_off_is_a_call(reader: AnswerParser, text: str) -> None:
    """It was begun, and cannot be taken back; `finish_reason` says length."""
    assert parse_answer(reader, text) == AnswerParts(calls=[ToolCall("add", '{"a": ')])


def test_what_follows_the_arguments_of_a_streamed_call_is_text() -> None:
    text = '<tool_call>{"name": "sub", "arguments": {}} or not</tool_call> so'
    assert parse_answer(parser("hermes", True), text) == AnswerParts("or not so", "", [SUB])


def test_content_is_given_at_once() -> None:
    """A reader must not wait for the end of the answer; only what may be a marker is held back."""
    reader = parser("hermes")
    assert [reader.feed(text).content for text in ("Hel", "lo <tool", "box>")] == ["Hel", "lo", " <toolbox>"]
    assert reader.feed(f"<tool_call>{_ADD}</tool_call>").calls == [ADD]


def test_a_prompt_may_open_the_reasoning() -> None:
    """Templates of models that always reason end with the opening marker."""
    form = AnswerFormat("hermes", reasoning=True)
    text = f"hm</think>yes<tool_call>{_ADD}</tool_call>"
    assert parse_answer(form.parser("<|assistant|><think>\n", True), text) == AnswerParts("yes", "hm", [ADD])
    assert parse_answer(form.parser("<think>\n\n</think>\n\n", True), "yes") == AnswerParts("yes")


def test_without_tools_markers_are_text() -> None:
    text = f"<tool_call>{_ADD}</tool_call>"
    assert parse_answer(AnswerFormat("hermes").parser("", reads_calls=False), text) == AnswerParts(text)


def test_the_format_is_seen_in_the_template() -> None:
    """Nobody should have to name it."""
    names = ("hermes", "mistral", "harmony")
    found = {name: detect_format((TEMPLATES / f"{name}.jinja").read_text()) for name in names}
    assert found == {
        "hermes": AnswerFormat("hermes", True),
        "mistral": AnswerFormat("mistral"),
        "harmony": AnswerFormat("harmony"),
    }
    assert detect_format("{{ messages }}") == AnswerFormat("none") == named_format("none", False)
    with pytest.raises(UsageError, match="hermes"):
        named_format("xml", False)


INT = {"type": "integer"}
TOOLS = [
    {"type": "function", "function": {"name": "add", "parameters": {"$ref": "#/$defs/X", "$defs": {"X": INT}}}},
    {"type": "function", "function": {"name": "sub"}},
]


def test_forced_calls_have_a_schema_and_a_parser() -> None:
    """Definitions of parameters move to where references look for them."""
    schema = forced_calls_schema(TOOLS, parallel=False)
    assert schema["$defs"] == {"X": INT} and schema["maxItems"] == schema["minItems"] == 1
    assert [call["properties"]["name"]["const"] for call in schema["items"]["anyOf"]] == ["add", "sub"]
    assert "maxItems" not in forced_calls_schema(TOOLS)
    assert forced_calls_schema(TOOLS, "sub") == {"type": "object", "properties": {}}
    whole = json.dumps([{"name": "sub", "arguments": {}}])
    assert parse_answer(ForcedCallsParser(), whole) == AnswerParts(calls=[SUB])
    assert parse_answer(ForcedCallsParser("sub"), "{}") == AnswerParts(calls=[SUB])
    assert parse_answer(ForcedCallsParser(), whole[:-3]) == AnswerParts(whole[:-3])


def test_tools_that_cannot_be_forced_are_refused() -> None:
    other = {"type": "function", "function": {"name": "mul", "parameters": {"$defs": {"X": {}}}}}
    twice = [*TOOLS, other]
    cases = (([], None, "none"), (TOOLS, "mul", "mul"), (twice, None, "two ways"), ([{}], None, "no function"))
    for tools, name, words in cases:
        with pytest.raises(RequestError, match=words):
            forced_calls_schema(tools, name)

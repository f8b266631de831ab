"""Answers that must call tools: a JSON schema that forces them, and the parser of such an answer.

With `tool_choice` "required" an answer is a list of calls, `[{"name": …, "arguments": {…}}, …]`; with a named tool it
is that tool's arguments alone. No marker of the model is needed, so this works for every model.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ....errors import RequestError
from .call_stream import CallListReader
from .parts import AnswerParts, ToolCall, make_call

_DEFINITIONS = ("$defs", "definitions")
Schema = dict[str, Any]


def forced_calls_schema(tools: Sequence[Schema], name: str | None = None, parallel: bool = True) -> Schema:
    """Return the JSON schema of an answer that calls the tool `name`, or any of these tools.

    Raises RequestError for tools that are no functions with names, and for a name that none of them has.
    """
    functions = {_function(tool)["name"]: _function(tool) for tool in tools}
    if name is not None:
        if name not in functions:
            raise RequestError(f"names {name!r}, which is none of the tools", "tool_choice", "Give it in tools")
        return _parameters(functions[name])
    if not functions:
        raise RequestError("requires a tool, and there is none", "tool_choice", "Give tools")
    definitions: Schema = {}
    calls = [_call_schema(function, definitions) for function in functions.values()]
    schema: Schema = {"type": "array", "minItems": 1, "items": {"anyOf": calls}} | definitions
    return schema if parallel else schema | {"maxItems": 1}


class ForcedCallsParser:
    """Parser of an answer that `forced_calls_schema` has shaped; an answer that was cut off is text.

    With `streams` calls are given while they are written, and only what was cut off before a call is text.
    """

    def __init__(self, name: str | None = None, streams: bool = False) -> None:
        self._name, self._streams = name, streams
        self._list, self._begun = CallListReader(), False
        self._text = ""

    def feed(self, text: str) -> AnswerParts:
        """Return what was added to calls, or nothing: then they are given at the end."""
        begun = self._begun
        self._text += text
        if not self._streams or not text:
            return AnswerParts()
        if self._name is None:
            parts = self._list.feed(text)
            self._begun = self._list.begun
            return parts
        self._begun = True
        return AnswerParts(call_text=text) if begun else AnswerParts(calls=[ToolCall(self._name, text)])

    def finish(self) -> AnswerParts:
        """Return the calls that were not given."""
        if self._begun:
            return AnswerParts()
        try:
            return AnswerParts(calls=self._read(json.loads(self._text)))
        except (ValueError, KeyError, TypeError, RecursionError):
            return AnswerParts(self._text)

    def _read(self, value: Any) -> list[ToolCall]:
        if self._name is not None:
            return [make_call(self._name, value)]
        return [make_call(call["name"], call["arguments"]) for call in value]


def _function(tool: Any) -> Schema:
    function = tool.get("function") if isinstance(tool, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise RequestError("holds what is no function with a name", "tools", 'Give {"type": "function", …}')
    return function


def _parameters(function: Schema) -> Schema:
    parameters = function.get("parameters")
    return parameters if isinstance(parameters, dict) else {"type": "object", "properties": {}}


def _call_schema(function: Schema, definitions: Schema) -> Schema:
    """Return the schema of a call; definitions of its parameters move to the top, where references look for them."""
    parameters = _parameters(function)
    for key in _DEFINITIONS:
        for name, schema in parameters.get(key, {}).items():
            if definitions.setdefault(key, {}).setdefault(name, schema) != schema:
                what = f"define {name!r} in two ways"
                raise RequestError(what, "tools", "Give the definitions different names")
    return {
        "type": "object",
        "properties": {
            "name": {"const": function["name"]},
            "arguments": {key: value for key, value in parameters.items() if key not in _DEFINITIONS},
        },
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }

"""Forms of structured output are checked before a request runs."""

from __future__ import annotations

import random
import time
from typing import Any

import pytest
from expertflow.errors import RequestError, UsageError
from expertflow.runtime.text import structured
from expertflow.runtime.text.structured import Structured, read_structured

GOOD: list[dict[str, Any]] = [
    {"json_schema": {"properties": {"a": {"$ref": "#/$defs/x"}}, "$defs": {"x": {"type": "integer"}}}},
    {"json_schema": '{"type": "array", "items": {"enum": ["é", null]}}'},
    {"json_schema": True},
    {"regex": r"\d+(\.\d+)?"},
    {"choice": ["yes", 'no "never"\n']},
    {"grammar": 'start: "a" start | "b"'},
]
BAD: list[tuple[Any, str, str]] = [
    (Structured(), "structured", "no form"),
    (Structured(regex="a", choice=["b"]), "structured", "regex and choice"),
    ({"regex": "a"}, "structured", "dict"),
    (Structured(json_schema="{"), "json_schema", "no JSON"),
    (Structured(json_schema="[1]"), "json_schema", "list"),
    (Structured(json_schema={"type": "objec"}), "json_schema", "objec"),
    (Structured(json_schema={"not": {}, "type": "string"}), "json_schema", "not"),
    (Structured(json_schema={"$ref": "http://example.com/x"}), "json_schema", "compiled"),
    (Structured(json_schema={"x": {1, 2}}), "json_schema", "set"),
    (Structured(regex="a("), "regex", "unclosed"),
    (Structured(regex="(?=a)"), "regex", "look-around"),
    (Structured(regex=""), "regex", "text"),
    (Structured(choice=[]), "choice", "list of texts"),
    (Structured(choice="yes"), "choice", "list of texts"),
    (Structured(choice=["a", ""]), "choice", "text"),
    (Structured(grammar="start: foo"), "grammar", "foo"),
    (Structured(regex="a" * 70_000), "regex", "65,536"),
]


@pytest.mark.parametrize("form", GOOD)
def test_a_form_becomes_a_grammar(form: dict[str, Any]) -> None:
    grammar = read_structured(Structured(**form))
    assert grammar and read_structured(grammar) is grammar
    assert read_structured(None) is None


@pytest.mark.parametrize("form,where,words", BAD)
def test_a_bad_form_is_refused_by_its_name(form: Any, where: str, words: str) -> None:
    """In one line: the library's messages have drawings."""
    with pytest.raises(RequestError, match=words) as refused:
        read_structured(form)
    assert refused.value.where == where and refused.value.remedy and "\n" not in refused.value.what


def words(count: int) -> list[str]:
    dice = random.Random(0)
    return ["".join(dice.choices("abcdef", k=8)) for _ in range(count)]


HARD: dict[str, Structured] = {
    "nested repeats": Structured(regex="((a{1,1000}){1,1000}){1,1000}"),
    "exponential automaton": Structured(regex="(a|b)*a(a|b){300}c"),
    "classes": Structured(regex=r"[\p{L}\p{N}]{1,400}(\p{Lu}|\p{Ll}x){1,400}"),
    "many patterns": Structured(
        json_schema={"properties": {word: {"type": "string", "pattern": "^(a|b)*a(a|b){30}$"} for word in words(900)}}
    ),
    "many texts": Structured(choice=words(5000)),
    "product": Structured(
        json_schema={"allOf": [{"anyOf": [{"required": [f"a{i}"]}, {"required": [f"b{i}"]}]} for i in range(20)]}
    ),
    "deep": Structured(grammar="start: " + "(" * 5000 + '"a"' + ")" * 5000),
}


@pytest.mark.parametrize("case", HARD)
def test_a_hard_form_is_compiled_or_refused_in_time(case: str) -> None:
    """The library's limits end all of these; a server must not hang on a body of 64 KB."""
    started_s = time.process_time()
    try:
        read_structured(HARD[case])
    except RequestError as refused:
        assert "takes more than" not in refused.what
    assert time.process_time() - started_s < structured.COMPILE_S / 2


def test_a_form_that_takes_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(structured, "COMPILE_S", 0.05)
    monkeypatch.setattr(structured, "grammar_error", lambda grammar: time.sleep(0.5) or "")
    with pytest.raises(RequestError, match=r"more than 0.05 s"):
        read_structured(Structured(regex="a"))


def test_without_the_library_the_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "llguidance", None)
    with pytest.raises(UsageError, match="llguidance") as refused:
        read_structured(Structured(choice=["a"]))
    assert "pip install 'expertflow-runtime[structured]'" in refused.value.remedy

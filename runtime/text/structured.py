"""Structured output: what a text must look like, and the grammar that compute follows. Grammars need llguidance."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from threading import Thread
from typing import Any

from ...errors import RequestError
from ...workers.grammars.library import (
    MAX_GRAMMAR_BYTES,
    choice_grammar,
    grammar_error,
    json_grammar,
    regex_grammar,
    require_llguidance,
)
from .conversation import plain

COMPILE_S = 10.0
"""Time after which a grammar is refused, whatever the library does."""
_REMEDY = "Leave out what is not supported (docs/how-to/structured-output.md)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Structured:
    """A form that every text of a request has. Exactly one field is given."""

    json_schema: Mapping[str, Any] | str | None = None
    """JSON that follows this schema (a dict or its text), without white space between its parts."""
    regex: str | None = None
    """A text that matches this regular expression as a whole."""
    choice: Sequence[str] | None = None
    """One of these texts."""
    grammar: str | None = None
    """A text of this grammar, in llguidance's dialect of Lark."""


class Grammar(str):
    """A grammar that `read_structured` has checked."""

    __slots__ = ()


def read_structured(structured: Structured | Grammar | None, where: str = "structured") -> Grammar | None:
    """Return the checked grammar of a form.

    Raises RequestError for a form that cannot be compiled, UsageError if llguidance is not installed.
    """
    if structured is None or isinstance(structured, Grammar):
        return structured
    if not isinstance(structured, Structured):
        what = f"must be a Structured, not {type(structured).__name__}"
        raise RequestError(what, where, "Give for example Structured(regex=…)")
    given = [field.name for field in fields(structured) if getattr(structured, field.name) is not None]
    if len(given) != 1:
        what = f"has {' and '.join(given) or 'no form'}"
        raise RequestError(what, where, "Give one of json_schema, regex, choice, grammar")
    require_llguidance()
    name = given[0]
    grammar = _MAKERS[name](getattr(structured, name), name)
    if len(grammar.encode()) > MAX_GRAMMAR_BYTES:
        what = f"has {len(grammar.encode()):,} bytes as a grammar, {MAX_GRAMMAR_BYTES:,} are allowed"
        raise RequestError(what, name, "Give a shorter one")
    if error := _compile_within(grammar, COMPILE_S):
        raise RequestError(f"cannot be compiled: {error}", name, _REMEDY)
    return Grammar(grammar)


def _compile_within(grammar: str, limit_s: float) -> str:
    """Return the error of a grammar, or that it took too long. The library's own limits end the thread later."""
    results: list[str] = []
    thread = Thread(target=lambda: results.append(grammar_error(grammar)), name="compile-grammar", daemon=True)
    thread.start()
    thread.join(limit_s)
    return results[0] if results else f"it takes more than {limit_s:g} s"


def _json(schema: Mapping[str, Any] | str, name: str) -> str:
    try:
        read = json.loads(schema) if isinstance(schema, str) else plain(schema, name)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"is no JSON ({error})", name, "Give a schema as a dict or as a text of JSON") from error
    if isinstance(read, bool):
        read = {} if read else {"not": {}}
    if not isinstance(read, dict):
        raise RequestError(f"must be an object, not {type(read).__name__}", name, "Give a JSON schema")
    return json_grammar(read)


def _regex(pattern: str, name: str) -> str:
    return regex_grammar(_text(pattern, name))


def _choice(choices: Sequence[str], name: str) -> str:
    texts = [] if isinstance(choices, str) else [_text(choice, name) for choice in choices]
    if not texts or "" in texts:
        raise RequestError("must be a list of texts that are not empty", name, 'Give for example ["yes", "no"]')
    return choice_grammar(texts)


def _text(text: Any, name: str) -> str:
    if not isinstance(text, str) or not text:
        raise RequestError(f"must be a text, not {text!r}", name, "Write it out")
    return plain(text, name)


_MAKERS = {"json_schema": _json, "regex": _regex, "choice": _choice, "grammar": _text}

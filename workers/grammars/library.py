"""llguidance, imported when a request has a grammar, with limits that end the compilation of any grammar.

The library counts work, not time, so that a grammar is refused or accepted alike on every machine and at every replay.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ...errors import UsageError

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer

EXTRA = "Install the extra: pip install 'expertflow-runtime[structured]'"
MAX_GRAMMAR_BYTES = 1 << 16
"""Length of a grammar; the slowest that was found compiles in half a second (tests/runtime/text/test_structured.py)."""


def require_llguidance() -> None:
    """Raise UsageError if llguidance is not installed or does not load."""
    try:
        import llguidance  # noqa: F401
    except ImportError as error:
        what = f"needs the library llguidance, which cannot be imported ({error})"
        raise UsageError(what, "structured", EXTRA) from error


def grammar_error(grammar: str) -> str:
    """Return why a grammar cannot be used, in one line; empty for a good one. Raises UsageError without llguidance."""
    require_llguidance()
    return _validate(grammar)


def make_matcher(tokenizer: LLTokenizer, grammar: str) -> LLMatcher:
    """Return the compiled grammar at its beginning. It raises nothing: ask it for its error."""
    from llguidance import LLMatcher

    return LLMatcher(tokenizer, grammar, log_level=0, limits=_limits())


def first_line(message: str) -> str:
    """Return a message of the library in one line, without the state that it adds."""
    kept = message.partition("\n<state>")[0].partition("\n   1 |")[0]
    return " ".join(kept.split())


def json_grammar(schema: dict[str, Any]) -> str:
    """Return the grammar of JSON that follows a schema, without white space."""
    guided = schema | {"x-guidance": {**_object(schema.get("x-guidance")), "whitespace_flexible": False}}
    return json.dumps({"grammars": [{"json_schema": guided}]}, ensure_ascii=False)


def regex_grammar(pattern: str) -> str:
    """Return the grammar of texts that match a regular expression as a whole. Raises UsageError without llguidance."""
    require_llguidance()
    from llguidance import LLMatcher

    return LLMatcher.grammar_from_regex(pattern)


def choice_grammar(choices: list[str]) -> str:
    """Return the grammar of these texts."""
    return "start: " + " | ".join(json.dumps(choice, ensure_ascii=False) for choice in choices)


@lru_cache(maxsize=256)
def _validate(grammar: str) -> str:
    from llguidance import LLMatcher

    is_error, messages = LLMatcher.validate_grammar_with_warnings(grammar, limits=_limits())
    return first_line(messages[0]) or "it cannot be compiled" if is_error else ""


def _limits() -> LLParserLimits:
    from llguidance import LLParserLimits

    return LLParserLimits(verbose_errors=False)


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}

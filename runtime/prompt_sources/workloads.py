"""Prompts from records of published data sets: Alpaca, WMT16, XSUM and AIME, the workloads of the paper (section 6).

Field names are those of the data sets on the hub, templates those that are published for them (docs/workloads.md).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import msgspec

from ...errors import UsageError

Format = Literal["lines", "alpaca", "wmt16", "xsum", "aime"]

LANGUAGES = {
    "cs": "Czech", "de": "German", "en": "English", "fi": "Finnish", "ro": "Romanian", "ru": "Russian", "tr": "Turkish",
}  # fmt: skip
"""Languages of WMT16's news translation task; each is paired with English."""

ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
)
ALPACA_WITHOUT_INPUT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:"
)
WMT16 = "English phrase: {source}\n{language} phrase:"
XSUM = "###\nArticle: {document}\n\nSummarize the above article in 1 sentence.\n"
AIME = "Question: {problem}\nAnswer:"


class _Alpaca(msgspec.Struct):
    instruction: str
    input: str | None = None


class _Wmt16(msgspec.Struct):
    translation: dict[str, str]


class _Xsum(msgspec.Struct):
    document: str


class _Aime(msgspec.Struct):
    """A record of AIME; collections name the field of the problem differently."""

    problem: str | None = None
    capital_problem: str | None = msgspec.field(default=None, name="Problem")
    capital_question: str | None = msgspec.field(default=None, name="Question")
    question: str | None = None


def record_prompts(content: bytes, name: str, form: Format) -> list[tuple[str, str]]:
    """Return the prompt and the place of every record in JSON lines, or in one JSON array. `name` is the file's.

    Raises UsageError that names the line (of an array: the record) that cannot be used, or if there is none.
    """
    make, records = _MAKERS[form], _records(content, name)
    if not records:
        raise UsageError("holds no record", name, f"Give records such as {_EXAMPLES[form]}")
    return [(_prompt(record, where, make, form), where) for record, where in records]


def _records(content: bytes, name: str) -> list[tuple[bytes | msgspec.Raw, str]]:
    if content.lstrip().startswith(b"["):
        return [(record, f"{name}, record {number}") for number, record in enumerate(_array(content, name), 1)]
    lines = content.removesuffix(b"\n").split(b"\n")
    return [(line, f"{name}, line {number}") for number, line in enumerate(lines, 1)]


def _array(content: bytes, name: str) -> list[msgspec.Raw]:
    try:
        return msgspec.json.decode(content, type=list[msgspec.Raw])
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise UsageError(f"is not a JSON array ({error})", name, "Give JSON lines or one JSON array") from error


def _prompt(record: bytes | msgspec.Raw, where: str, make: Callable[[bytes | msgspec.Raw], str], form: Format) -> str:
    if not bytes(record).strip():
        raise UsageError("the line is empty", where, "Remove it: each line holds a record")
    try:
        return make(record)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        what = f"is not a record of {form} ({error})"
        raise UsageError(what, where, f"Give {_EXAMPLES[form]}, or another --format") from error


def _alpaca(record: bytes | msgspec.Raw) -> str:
    values = msgspec.json.decode(record, type=_Alpaca)
    instruction = _require_text(values.instruction, "instruction")
    if values.input and values.input.strip():
        return ALPACA_WITH_INPUT.format(instruction=instruction, input=values.input)
    return ALPACA_WITHOUT_INPUT.format(instruction=instruction)


def _wmt16(record: bytes | msgspec.Raw) -> str:
    pair = msgspec.json.decode(record, type=_Wmt16).translation
    others = [code for code in pair if code != "en"]
    if "en" not in pair or len(others) != 1 or others[0] not in LANGUAGES:
        languages = ", ".join(sorted(set(LANGUAGES) - {"en"}))
        raise ValueError(f"`translation` has {', '.join(pair) or 'nothing'}, not en and one of {languages}")
    return WMT16.format(source=_require_text(pair["en"], "translation.en"), language=LANGUAGES[others[0]])


def _xsum(record: bytes | msgspec.Raw) -> str:
    return XSUM.format(document=_require_text(msgspec.json.decode(record, type=_Xsum).document, "document"))


def _aime(record: bytes | msgspec.Raw) -> str:
    values = msgspec.json.decode(record, type=_Aime)
    problem = values.problem or values.capital_problem or values.capital_question or values.question
    return AIME.format(problem=_require_text(problem or "", "problem"))


def _require_text(text: str, field: str) -> str:
    if not text.strip():
        raise ValueError(f"`{field}` is missing or empty")
    return text


_MAKERS: dict[str, Callable[[bytes | msgspec.Raw], str]] = {
    "alpaca": _alpaca,
    "wmt16": _wmt16,
    "xsum": _xsum,
    "aime": _aime,
}
_EXAMPLES = {
    "alpaca": '{"instruction": "...", "input": "..."}',
    "wmt16": '{"translation": {"de": "...", "en": "..."}}',
    "xsum": '{"document": "..."}',
    "aime": '{"problem": "..."}',
}

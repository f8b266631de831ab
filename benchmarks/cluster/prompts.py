"""Prompts of four kinds for the built-in model, cut from its held-out text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import expertflow

HELD_OUT = Path(expertflow.__file__).parent / "examples" / "held_out.txt"
LETTERS = 140
POETRY = {"Psalms", "Proverbs", "Job", "Isaiah", "Jeremiah", "Ecclesiastes", "Lamentations"}
HEADING = re.compile(r"(?:[1-3] )?([A-Z][a-z]+) \d+")
SQL = re.compile(r"sqlite|\bSQL\b|pragma|b-tree|\bVFS\b|database", re.IGNORECASE)
HACKERS = re.compile(r"hacker|jargon|\[Usenet|\[from|programm|Unix|\bMIT\b", re.IGNORECASE)
KINDS = ("narrative", "poetry", "database", "jargon")


def read_prompts() -> dict[str, list[str]]:
    """Return kind -> pieces of text, `LETTERS` letters each, in the order of the text."""
    found: dict[str, list[str]] = {kind: [] for kind in KINDS}
    for kind, text in _passages():
        found[kind] += [text[start : start + LETTERS] for start in range(0, len(text) - LETTERS, 2 * LETTERS)]
    return found


def _passages() -> Iterator[tuple[str, str]]:
    """Yield (kind, text) of neighbouring lines of one kind."""
    book, passage, last = "", "", ""
    for line in HELD_OUT.read_text().splitlines():
        if heading := HEADING.fullmatch(line.strip()):
            book = heading[1]
        kind = kind_of(line.strip(), book) or (last if line.strip() else "")
        if kind != last:
            if last:
                yield last, passage
            passage, last = "", kind
        passage = f"{passage} {line.strip()}".strip()


def kind_of(text: str, book: str) -> str:
    """Return the kind of a line; empty: none for certain, so that of the line before."""
    if re.match(r"\d+ [A-Z]", text):
        return "poetry" if book in POETRY else "narrative"
    if SQL.search(text):
        return "database"
    return "jargon" if HACKERS.search(text) else ""


def mixed(count: int, kinds: tuple[str, ...] = KINDS) -> list[tuple[str, str]]:
    """Return so many (kind, prompt), the kinds in turn; prompts come again where a kind has too few."""
    prompts = read_prompts()
    return [
        (kind := kinds[number % len(kinds)], prompts[kind][number // len(kinds) % len(prompts[kind])])
        for number in range(count)
    ]

"""The glossary is true: every place that it names is there and speaks of its term, every name is one of the code."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import expertflow
import pytest
from expertflow.runtime.command_line.registry import NAMES

ROOT = Path(expertflow.__file__).resolve().parent
PAGE = ROOT / "docs" / "glossary.md"
ROOMS = ("configs", "ipc", "workers", "runtime")
ROWS = [
    tuple(cell.strip() for cell in line.strip("|").split(" | "))
    for line in PAGE.read_text().splitlines()
    if line.startswith("| ") and not line.startswith(("| term", "| ---", "| **"))
]


def read_code(place: str) -> str:
    """Return the text of a file or of all modules in a folder, with its path."""
    path = ROOT / place
    files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
    return "\n".join([place, *(file.read_text() for file in files)])


@cache
def defined_names() -> frozenset[str]:
    """Return the names of classes, functions, fields and commands, and the values of literals."""
    trees = [ast.parse(file.read_bytes()) for room in ROOMS for file in (ROOT / room).rglob("*.py")]
    return frozenset(NAMES) | {name for tree in trees for node in ast.walk(tree) for name in names_of(node)}


def names_of(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AnnAssign(target=ast.Name(id=name)):
            yield name
        case ast.Subscript(value=ast.Name(id="Literal"), slice=choices):
            values = (each.value for each in ast.walk(choices) if isinstance(each, ast.Constant))
            yield from (value for value in values if isinstance(value, str))


def is_path(name: str) -> bool:
    return "/" in name or name.endswith(".py")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_a_term_means_what_the_code_has(row: tuple[str, ...]) -> None:
    term, _, where = row
    named = re.findall(r"`([^`]+)`", " ".join(row))
    assert [name for name in named if not (ROOT / name).exists() and name not in defined_names()] == []
    places = re.findall(r"`([^`]+)`", where)
    words = [word for word in re.findall(r"[a-z]+", term.lower()) if len(word) > 2]
    assert places and all(is_path(place) for place in places)
    silent = [place for place in places if not any(word in read_code(place).lower() for word in words)]
    assert silent == [], f"{term!r} is not to be found there"


def test_rows_are_read() -> None:
    assert len(ROWS) > 30 and all(len(row) == 3 for row in ROWS)

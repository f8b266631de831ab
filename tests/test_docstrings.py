"""Docstrings begin with a verb or a noun, functions say what they return, and both they and files stay short."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("configs", "ipc", "workers", "runtime")
FILES = [file.relative_to(ROOT) for room in ROOMS for file in sorted((ROOT / room).rglob("*.py"))]
MAX_FUNCTION_LINES, MAX_FILE_LINES = 60, 320
INDIRECT = re.compile(r"(Of|What|Who|Whose|So|Whether|How|Which)\b")


def faults_in(source: str) -> Iterator[str]:
    """Yield the faults of a module, each with its line; attributes' docstrings count as those of functions do."""
    if (length := len(source.splitlines())) > MAX_FILE_LINES:
        yield f"1: {length} lines in the file"
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Expr(value=ast.Constant(value=str(text))) if INDIRECT.match(text.strip()):
                yield f"{node.lineno}: begins {text.strip()[:40]!r}"
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                yield from function_faults(node)


def function_faults(function: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[str]:
    """Yield the faults of one function."""
    if function.returns is None and not function.name.startswith("_"):
        yield f"{function.lineno}: {function.name} has no return annotation"
    if (length := (function.end_lineno or 0) - function.lineno + 1) > MAX_FUNCTION_LINES:
        yield f"{function.lineno}: {length} lines in {function.name}"


@pytest.mark.parametrize("room", ROOMS)
def test_the_package_reads_plainly(room: str) -> None:
    files = [file for file in FILES if file.parts[0] == room]
    assert files and [f"{file}:{fault}" for file in files for fault in faults_in((ROOT / file).read_text())] == []


@pytest.mark.parametrize(
    "source",
    ['"""What it does."""', 'x = 1\n"""Whether."""', "def f(): ...", "def f() -> None:" + "\n    f()" * 60, "\n" * 321],
)
def test_a_planted_fault_is_found(source: str) -> None:
    assert len(list(faults_in(source))) == 1

"""Only monotonic clocks decide anything: the wall clock may jump."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import expertflow
import pytest

ROOT = Path(expertflow.__file__).resolve().parent
ROOMS = ("configs", "ipc", "workers", "runtime")
WALL = {"time", "time_ns", "ctime", "localtime", "gmtime", "strftime", "now", "utcnow", "today"}
MODULES = {"time", "datetime", "date"}
ALLOWED = {
    "ipc/shared/rundir.py": "age of a folder that its maker did not lock in a minute, by the time of the folder",
    "workers/checkpoint/gguf/description.py": "age of an unfinished folder in the cache, by the time of the folder",
    "runtime/page/page_json.py": "shown to people",
    "runtime/text/chat_render.py": "the date that a chat template may tell the model",
    "runtime/bundle/gather.py": "tells when a bundle was written",
    "runtime/batch_files/job.py": "stands in results, as OpenAI's `created`",
    "runtime/openai/model.py": "stands in answers, as OpenAI's `created`",
    "runtime/openai/call.py": "stands in answers, as OpenAI's `created`",
}


def wall_clocks(source: str) -> Iterator[int]:
    """Yield the lines that name a wall clock, called or handed on: `time.time`, `datetime.now`, from an import too."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id=module), attr=name) if module in MODULES and name in WALL:
                yield node.lineno
            case ast.Attribute(value=ast.Attribute(attr=module), attr=name) if module in MODULES and name in WALL:
                yield node.lineno
            case ast.ImportFrom(module="time", names=names) if any(alias.name in WALL for alias in names):
                yield node.lineno


def test_no_decision_hangs_on_the_wall_clock() -> None:
    files = [file for room in ROOMS for file in sorted((ROOT / room).rglob("*.py"))]
    found = {str(file.relative_to(ROOT)) for file in files if list(wall_clocks(file.read_text()))}
    assert found == set(ALLOWED), "say in ALLOWED why a jump of the clock does no harm there, or take time.monotonic"


@pytest.mark.parametrize(
    "line",
    ["time.time()", "f = time.time_ns", "datetime.now(UTC)", "datetime.datetime.now()", "from time import time"],
)
def test_a_planted_wall_clock_is_found(line: str) -> None:
    assert list(wall_clocks(line))


@pytest.mark.parametrize("line", ["time.monotonic()", "datetime.fromtimestamp(0)", "self.time()", "x.now"])
def test_other_clocks_are_left_alone(line: str) -> None:
    assert not list(wall_clocks(line))

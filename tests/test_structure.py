"""The house keeps its shape: no import circle, dependencies that point one way, no crowded folder."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("configs", "ipc", "workers", "runtime")
"""Each may import from itself and from those before it."""
MAX_FLAT_FILES = 20
PACKAGE_FILES = [file.relative_to(ROOT) for room in ROOMS for file in sorted((ROOT / room).rglob("*.py"))]


def imported_files(file: Path, root: Path) -> Iterator[Path]:
    """Yield the files below `root` that `file` imports relatively, imports inside functions included."""
    for node in ast.walk(ast.parse((root / file).read_bytes())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = file.parents[node.level - 1].joinpath(*(node.module or "").split("."))
            for name in [base / alias.name for alias in node.names] + [base]:
                if (root / name).with_suffix(".py").is_file():
                    yield name.with_suffix(".py")
                elif (root / name / "__init__.py").is_file():
                    yield name / "__init__.py"


def import_graph(files: list[Path], root: Path) -> dict[Path, set[Path]]:
    """Return file -> the files that it imports."""
    return {file: set(imported_files(file, root)) - {file} for file in files}


def folder_graph(graph: dict[Path, set[Path]]) -> dict[Path, set[Path]]:
    """Return folder -> the other folders whose modules its files import."""
    folders: dict[Path, set[Path]] = {}
    for file, imported in graph.items():
        folders.setdefault(file.parent, set()).update({other.parent for other in imported} - {file.parent})
    return folders


def circle_in(graph: dict[Path, set[Path]]) -> list[str]:
    """Return the members of one circle of `graph`, none if there is no circle."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return [str(member) for member in error.args[1]]
    return []


def test_no_file_stands_in_an_import_circle() -> None:
    assert circle_in(import_graph(PACKAGE_FILES, ROOT)) == []


def test_no_folder_stands_in_an_import_circle() -> None:
    assert circle_in(folder_graph(import_graph(PACKAGE_FILES, ROOT))) == []


def test_dependencies_point_one_way() -> None:
    for file, imported in import_graph(PACKAGE_FILES, ROOT).items():
        allowed = ROOMS[: ROOMS.index(file.parts[0]) + 1]
        for other in imported:
            assert other.parts[0] in (*allowed, "errors.py", "__init__.py"), f"{file} imports {other}"


def test_no_folder_is_crowded() -> None:
    for folder in {file.parent for file in PACKAGE_FILES}:
        flat = [file for file in (ROOT / folder).glob("*.py") if file.name != "__init__.py"]
        assert len(flat) <= MAX_FLAT_FILES, f"{folder} holds {len(flat)} files"


@pytest.mark.parametrize("line", ["from .b import x", "def f() -> None:\n    from .b import x", "from . import b"])
def test_a_planted_circle_is_found(tmp_path: Path, line: str) -> None:
    for name, text in {
        "one/a.py": line,
        "one/b.py": "from ..two.c import x",
        "two/c.py": "from ..one.a import x",
    }.items():
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    graph = import_graph([Path("one/a.py"), Path("one/b.py"), Path("two/c.py")], tmp_path)
    assert {"one/a.py", "one/b.py", "two/c.py"} <= set(circle_in(graph))
    assert {"one", "two"} <= set(circle_in(folder_graph(graph)))

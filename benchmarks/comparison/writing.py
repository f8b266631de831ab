"""What a comparison leaves: rows as JSON, a page in Markdown and a picture beside it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import msgspec

from .columns import INSIDE
from .rows import Cell
from .tables import Row, draw, insiders, legend, markdown


def write(rows: Sequence[Row], cells: Sequence[Cell], file: Path, title: str, notes: Sequence[str]) -> None:
    """`file`: the JSON, with the cells that rows were made of; the others have its name."""
    file.parent.mkdir(parents=True, exist_ok=True)
    kept = {"rows": list(rows), "cells": msgspec.to_builtins(list(cells))}
    file.write_text(json.dumps(kept, indent=None) + "\n")
    picture = file.with_suffix(".png")
    draw(rows, picture, title)
    shown = [f"![{title}]({picture.name})\n"] if picture.exists() else []
    file.with_suffix(".md").write_text(
        "\n".join([f"# {title}\n", *(f"{note}\n" for note in notes), *_body(rows, shown)])
    )


def _body(rows: Sequence[Row], pictures: Sequence[str]) -> list[str]:
    inside = insiders(rows)
    parts = ["## How fast, how large, how exact\n", markdown(rows), *pictures]
    parts += ["## Inside ExpertFlow\n", markdown(inside, INSIDE)] if inside else []
    return [*parts, "## Columns\n", legend(rows)]


def read_cells(file: Path) -> list[Cell]:
    """Of an earlier run; none if there is no such file."""
    return msgspec.convert(json.loads(file.read_text())["cells"], list[Cell]) if file.exists() else []

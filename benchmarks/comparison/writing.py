"""What a comparison leaves: rows as JSON, a page in Markdown and a picture beside it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from .tables import Row, draw, markdown


def write(rows: Sequence[Row], file: Path, title: str, notes: Sequence[str]) -> None:
    """`file`: the JSON; the others have its name."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(list(rows), indent=1) + "\n")
    picture = file.with_suffix(".png")
    draw(rows, picture, title)
    shown = [f"![{title}]({picture.name})\n"] if picture.exists() else []
    file.with_suffix(".md").write_text(
        "\n".join([f"# {title}\n", *(f"{note}\n" for note in notes), markdown(rows), *shown])
    )

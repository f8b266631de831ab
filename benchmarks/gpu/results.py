"""The results of parts: one JSON file each, or a text that says why there is none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def save_result(folder: Path, part: str, result: dict[str, Any]) -> None:
    partial = folder / f".{part}.partial"
    partial.write_text(json.dumps(result, indent=1))
    partial.rename(folder / f"{part}.json")
    (folder / f"{part}.failed.txt").unlink(missing_ok=True)


def save_failure(folder: Path, part: str, words: str) -> None:
    (folder / f"{part}.failed.txt").write_text(words + "\n")


def result_of(folder: Path, part: str) -> dict[str, Any] | None:
    file = folder / f"{part}.json"
    return json.loads(file.read_text()) if file.exists() else None


def failure_of(folder: Path, part: str) -> str | None:
    file = folder / f"{part}.failed.txt"
    return file.read_text().strip() if file.exists() else None

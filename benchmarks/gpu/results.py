"""What a check has found so far: one file, kept between runs, with the result of each part or why there is none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from expertflow.errors import UsageError

FILE = "results.json"
REHEARSAL = "rehearsal"


def begin(folder: Path, rehearsal: bool) -> None:
    """Make the folder. Raises UsageError if it holds figures of the other kind."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = _read(folder)
    if kept.setdefault(REHEARSAL, rehearsal) != rehearsal:
        kind = "a rehearsal" if kept[REHEARSAL] else "a run on a GPU"
        raise UsageError(f"holds the results of {kind}", str(folder), "Give another folder with --out")
    _write(folder, kept)


def is_rehearsal(folder: Path) -> bool:
    return bool(_read(folder).get(REHEARSAL))


def save_result(folder: Path, part: str, result: dict[str, Any]) -> None:
    kept = _read(folder)
    kept["failures"].pop(part, None)
    kept["results"][part] = result
    _write(folder, kept)


def save_failure(folder: Path, part: str, words: str) -> None:
    kept = _read(folder)
    kept["failures"][part] = words
    _write(folder, kept)


def result_of(folder: Path, part: str) -> dict[str, Any] | None:
    return _read(folder)["results"].get(part)


def failure_of(folder: Path, part: str) -> str | None:
    return _read(folder)["failures"].get(part)


def _read(folder: Path) -> dict[str, Any]:
    file = folder / FILE
    return json.loads(file.read_text()) if file.exists() else {"results": {}, "failures": {}}


def _write(folder: Path, kept: dict[str, Any]) -> None:
    partial = folder / f".{FILE}.partial"
    partial.write_text(json.dumps(kept, indent=1) + "\n")
    partial.rename(folder / FILE)

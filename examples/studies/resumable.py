"""A folder of results, one JSON file a cell, so that a stopped run goes on where it was."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from expertflow.errors import UsageError

Row = dict[str, Any]
Report = Callable[[str], None]

MADE_WITH = "made with"
"""Field of a cell's file with the settings of its run; files of older versions have none."""
_REMEDY = "Remove it; its cell runs again"


class ResultFolder:
    """Keeps rows by name and the time that a run may still take."""

    def __init__(self, folder: Path, minutes: float, report: Report) -> None:
        """Make the folder. Raises UsageError if it cannot be made."""
        self._folder = folder / "cells"
        self._deadline_s = time.monotonic() + 60 * minutes if minutes else float("inf")
        self._report = report
        self.left_out: list[str] = []
        """Names of cells for which no time was left."""
        with _named(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)

    def stored(self, name: str, settings: Row) -> Row | None:
        """Return the row of a cell that has run, None otherwise.

        Raises UsageError for a damaged file, or one that was made with other settings.
        """
        file = self._folder / f"{name}.json"
        if not file.is_file():
            return None
        try:
            row = json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise UsageError(f"is not JSON: {error}", str(file), _REMEDY) from error
        if not isinstance(row, dict) or not row:
            raise UsageError("holds no row", str(file), _REMEDY)
        made_with = row.pop(MADE_WITH, settings)
        if made_with != settings:
            changed = [
                key for key in settings if not isinstance(made_with, dict) or made_with.get(key) != settings[key]
            ]
            what = f"was made with other settings ({', '.join(changed) or 'more'})"
            raise UsageError(what, str(file), f"Name another --out. {_REMEDY}")
        return row

    def run(self, name: str, compute: Callable[[], Row], settings: Row | None = None) -> Row | None:
        """Return the cell's row, computed if it is not there yet; None if the time is over.

        `settings` is what the row depends on and its name does not say. Raises UsageError as `stored`, and if the row
        cannot be written.
        """
        made_with = json.loads(json.dumps(settings or {}))
        if (row := self.stored(name, made_with)) is not None:
            return row
        if time.monotonic() >= self._deadline_s:
            self.left_out.append(name)
            return None
        begun_s = time.monotonic()
        row = json.loads(json.dumps(compute()))  # as a resumed run reads it
        self._write(name, {**row, MADE_WITH: made_with})
        self._report(f"{name}: {time.monotonic() - begun_s:.0f} s")
        return row

    def _write(self, name: str, row: Row) -> None:
        fresh = self._folder / f"{name}.fresh"
        with _named(self._folder):
            fresh.write_text(json.dumps(row) + "\n", encoding="utf-8")
            fresh.rename(self._folder / f"{name}.json")


def save_rows(file: Path | None, rows: list[Row]) -> None:
    """Write the rows as JSON, one a line, if a file is given."""
    if file is not None:
        lines = ",\n".join(json.dumps(row) for row in rows)
        with _named(file):
            file.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def digest_of(facts: Iterable[object]) -> str:
    """Return 16 letters that tell lists of plain facts apart, such as the questions of a set."""
    digest = hashlib.blake2b(digest_size=8)
    for fact in facts:
        digest.update(repr(fact).encode() + b"\n")
    return digest.hexdigest()


@contextmanager
def _named(place: Path) -> Iterator[None]:
    """Turn what the system says against a write into UsageError."""
    try:
        yield
    except OSError as error:
        what = f"cannot be written: {error.strerror or error}"
        raise UsageError(what, str(place), "Make room, or name another place; finished cells are kept") from error

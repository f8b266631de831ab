"""A folder of results, one JSON file a cell, so that a stopped run goes on where it was."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from expertflow.errors import UsageError

Row = dict[str, Any]
Report = Callable[[str], None]


class ResultFolder:
    """Keeps rows by name and the time that a run may still take."""

    def __init__(self, folder: Path, minutes: float, report: Report) -> None:
        self._folder = folder / "cells"
        self._deadline_s = time.monotonic() + 60 * minutes if minutes else float("inf")
        self._report = report
        self.left_out: list[str] = []
        """Names of cells for which no time was left."""
        self._folder.mkdir(parents=True, exist_ok=True)

    def stored(self, name: str) -> Row | None:
        """Return the row of a cell that has run, None otherwise. Raises UsageError for a damaged file."""
        file = self._folder / f"{name}.json"
        if not file.is_file():
            return None
        try:
            return json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UsageError(f"is not JSON: {error}", str(file), "Remove it; its cell runs again") from error

    def run(self, name: str, compute: Callable[[], Row]) -> Row | None:
        """Return the cell's row, computed if it is not there yet; None if the time is over."""
        if (row := self.stored(name)) is not None:
            return row
        if time.monotonic() >= self._deadline_s:
            self.left_out.append(name)
            return None
        begun_s = time.monotonic()
        row = json.loads(json.dumps(compute()))  # as a resumed run reads it
        self._write(name, row)
        self._report(f"{name}: {time.monotonic() - begun_s:.0f} s")
        return row

    def _write(self, name: str, row: Row) -> None:
        fresh = self._folder / f"{name}.fresh"
        fresh.write_text(json.dumps(row) + "\n", encoding="utf-8")
        fresh.rename(self._folder / f"{name}.json")


def save_rows(file: Path | None, rows: list[Row]) -> None:
    """Write the rows as JSON, one a line, if a file is given."""
    if file is not None:
        lines = ",\n".join(json.dumps(row) for row in rows)
        file.write_text(f"[\n{lines}\n]\n", encoding="utf-8")

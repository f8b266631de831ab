"""Bad rows of a published file: an error that names file and line, or a count of what was left out."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from expertflow.errors import UsageError

SKIP_REMEDY = "Correct the file, or leave such rows out with --skip-bad"
_MAX_DIGITS = 19


class BadRowError(UsageError):
    """A row that cannot be used; `where` names the file and the line."""


class BadRows:
    """Decides what happens to bad rows of all files of a run, and counts those left out."""

    def __init__(self, skip: bool = False) -> None:
        self._skip = skip
        self.counts: Counter[str] = Counter()
        """File name -> rows left out."""

    def refuse(self, file: Path, line: int, what: str) -> None:
        """Count the row if bad rows are skipped. Raises BadRowError otherwise."""
        if not self._skip:
            raise BadRowError(what, f"{file}, line {line}", SKIP_REMEDY)
        self.counts[file.name] += 1


def read_text(file: Path) -> str:
    """Return the file's text. Raises UsageError if the file is missing or is not UTF-8."""
    try:
        return file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror}", str(file), "Name the folder of the data") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"is not UTF-8 at byte {error.start}", str(file), "Download the file again") from error


def missing_field(row: Mapping[str, Any], names: tuple[str, ...]) -> str:
    """Return the first of `names` that the row lacks, empty if it lacks none."""
    return next((name for name in names if row.get(name) is None), "")


def is_number(value: object) -> bool:
    """Return whether a field is a whole number, or the text of one, as ids of published sets are."""
    text = str(value) if isinstance(value, int | str) and not isinstance(value, bool) else ""
    return text.isascii() and text.isdigit() and len(text) < _MAX_DIGITS


def bad_number(row: Mapping[str, Any], names: tuple[str, ...]) -> str:
    """Return what is wrong with the first of `names` that holds no number, empty if all do."""
    name = next((name for name in names if not is_number(row[name])), "")
    return f"has the {name} {row[name]!r}, which is no number" if name else ""


def require_answers(asked: Iterable[Hashable], answers: Mapping[Any, str], where: str = "answers") -> None:
    """Raise UsageError unless each question id has an answer."""
    missing = [name for name in asked if name not in answers]
    if missing:
        what = f"holds no answer to {len(missing)} questions, the first is {missing[0]}"
        raise UsageError(what, where, "Answer every question")


def json_lines(file: Path, fields: tuple[str, ...], bad: BadRows) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line, object) of a file with a JSON object a line; empty lines are passed over.

    Only a line feed ends a line: JSON may hold the other separators of Unicode as they are.
    """
    for line, text in enumerate(read_text(file).split("\n"), start=1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            bad.refuse(file, line, f"is not JSON: {error}")
            continue
        if _is_whole(file, line, row, fields, bad):
            yield line, row


def json_array(file: Path, key: str, fields: tuple[str, ...], bad: BadRows) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line, object) of the array under `key` of a JSON file.

    Raises UsageError if the file has no such array, or is cut off inside it.
    """
    text = read_text(file)
    decoder = json.JSONDecoder()
    place, line, counted = _array_start(file, text, key), 1, 0
    while (place := _next_value(text, place)) < len(text) and text[place] != "]":
        line, counted = line + text.count("\n", counted, place), place
        try:
            row, place = decoder.raw_decode(text, place)
        except (ValueError, RecursionError) as error:
            what = f"is broken inside '{key}': {error}"
            raise UsageError(what, f"{file}, line {line}", "Download the file again") from error
        if _is_whole(file, line, row, fields, bad):
            yield line, row
    if place >= len(text):
        raise UsageError(f"ends inside '{key}'", str(file), "Download the file again")


def _array_start(file: Path, text: str, key: str) -> int:
    found = re.search(rf'"{re.escape(key)}"\s*:\s*\[', text)
    if found is None:
        raise UsageError(f"has no array '{key}'", str(file), "Name a file of this data set's format")
    return found.end()


def _next_value(text: str, place: int) -> int:
    while place < len(text) and text[place] in " \t\r\n,":
        place += 1
    return place


def _is_whole(file: Path, line: int, row: Any, fields: tuple[str, ...], bad: BadRows) -> bool:
    if not isinstance(row, dict):
        bad.refuse(file, line, f"is not an object but {type(row).__name__}")
        return False
    if name := missing_field(row, fields):
        bad.refuse(file, line, f"has no field '{name}'")
        return False
    return True

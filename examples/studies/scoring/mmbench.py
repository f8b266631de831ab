"""MMBench (arXiv 2307.06281): its tables, its prompt, and CircularEval."""

from __future__ import annotations

import base64
import binascii
import csv
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from expertflow.errors import UsageError

from .bad_rows import BadRows, is_number, require_answers
from .choices import find_option

ROTATION_STEP = 1_000_000
"""Rows i, i + 1e6, i + 2e6 … are rotations of one question."""
LETTERS = "ABCD"
_FIELDS = ("index", "image", "question", "answer")
_COLUMNS = ("index", "image", "question", "hint", *LETTERS, "answer", "category", "l2-category", "split", "source")
_MAX_REFERENCE = 16
"""Characters; a longer image is base64."""


@dataclass(frozen=True)
class MmbenchRow:
    """A row with its image resolved; `options` maps a letter to its text."""

    index: int
    image: bytes
    question: str
    hint: str
    options: dict[str, str]
    answer: str
    category: str
    l2_category: str

    @property
    def group(self) -> int:
        """Return the index of the question that this row is a rotation of."""
        return self.index % ROTATION_STEP

    @property
    def prompt(self) -> str:
        """Return the prompt of the published wording."""
        hint = f"Hint: {self.hint}\n" if self.hint else ""
        options = "".join(f"{letter}. {text}\n" for letter, text in self.options.items())
        tail = "Please select the correct answer from the options above."
        return f"{hint}Question: {self.question}\nOptions:\n{options}{tail}"


def read_mmbench(file: Path, bad: BadRows) -> list[MmbenchRow]:
    """Return the rows of a table; an image may be base64 or the index of the row that has it.

    Where bad rows are skipped, all rotations of a bad row are left out with it: a question asked in fewer rotations is
    easier.

    Raises BadRowError for a row without a field, with an answer that is no option, or whose image is no image and
    points to no row; UsageError if the table lacks a column.
    """
    refused: set[int] = set()
    rows = list(_table_rows(file, bad, refused))
    images = {row["index"]: row["image"] for _, row in rows if len(row["image"]) > _MAX_REFERENCE}
    read: list[MmbenchRow] = []
    for line, row in rows:
        image = _decode(images.get(row["image"], row["image"]))
        options = {letter: row[letter] for letter in LETTERS if row.get(letter)}
        if image is None or row["answer"] not in options:
            refused.add(int(row["index"]) % ROTATION_STEP)
        if image is None:
            bad.refuse(file, line, f"has the image {row['image'][:20]!r}, which is no row with an image and no base64")
        elif row["answer"] not in options:
            bad.refuse(file, line, f"has the answer {row['answer']!r}, which is none of its options")
        else:
            read.append(_row(row, image, options))
    return [row for row in read if row.group not in refused]


def _table_rows(file: Path, bad: BadRows, refused: set[int]) -> Iterable[tuple[int, dict[str, str]]]:
    csv.field_size_limit(2**31 - 1)  # an image is one field
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.DictReader(lines, delimiter="\t")
            if missing := [name for name in _FIELDS if name not in (reader.fieldnames or ())]:
                raise UsageError(f"has no column '{missing[0]}'", str(file), "Name a table of MMBench")
            for row in reader:
                if name := next((name for name in _FIELDS if not row[name]), ""):
                    bad.refuse(file, reader.line_num, f"has no field '{name}'")
                    if is_number(row["index"]):
                        refused.add(int(row["index"]) % ROTATION_STEP)
                elif not is_number(row["index"]):
                    bad.refuse(file, reader.line_num, f"has the index {row['index']!r}, which is no number")
                else:
                    yield reader.line_num, row
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror}", str(file), "Name the table of the data") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"is not UTF-8: {error}", str(file), "Download the file again") from error
    except csv.Error as error:
        raise UsageError(f"is no table: {error}", str(file), "Download the file again") from error


def _row(row: Mapping[str, str], image: bytes, options: dict[str, str]) -> MmbenchRow:
    hint, category, l2 = ((row.get(name) or "") for name in ("hint", "category", "l2-category"))
    return MmbenchRow(int(row["index"]), image, row["question"], hint, options, row["answer"], category, l2)


def _decode(text: str) -> bytes | None:
    if len(text) <= _MAX_REFERENCE:
        return None
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None


def rotations(row: MmbenchRow) -> list[MmbenchRow]:
    """Return the row and its rotations: options move one letter on each time, the answer with them."""
    letters, texts = list(row.options), list(row.options.values())
    right = letters.index(row.answer)
    return [
        replace(
            row,
            index=row.index + turn * ROTATION_STEP,
            options=dict(zip(letters, texts[-turn:] + texts[:-turn] if turn else texts, strict=True)),
            answer=letters[(right + turn) % len(letters)],
        )
        for turn in range(len(letters))
    ]


def write_mmbench(file: Path, rows: Iterable[MmbenchRow]) -> None:
    """Write a table; the image of a rotation is the index of its first row, as in the published tables."""
    with file.open("w", encoding="utf-8", newline="") as target:
        writer = csv.writer(target, delimiter="\t", lineterminator="\n")
        writer.writerow(_COLUMNS)
        for row in rows:
            first = row.index == row.group
            image = base64.b64encode(row.image).decode() if first else str(row.group)
            options = [row.options.get(letter, "") for letter in LETTERS]
            kinds = (row.answer, row.category, row.l2_category, "dev", "scenes")
            writer.writerow((row.index, image, row.question, row.hint, *options, *kinds))


@dataclass(frozen=True)
class MmbenchScores:
    """Shares of right questions, 0 to 1."""

    circular: float
    """Every rotation is right."""
    plain: float
    """The first row of a question is right."""
    by_category: dict[str, float]
    """CircularEval."""


def score_mmbench(rows: list[MmbenchRow], answers: Mapping[int, str]) -> MmbenchScores:
    """Return the scores; `answers` holds a text for each row's index.

    Raises UsageError if a row has no answer.
    """
    require_answers([row.index for row in rows], answers)
    groups: defaultdict[int, list[bool]] = defaultdict(list)
    firsts: list[bool] = []
    categories = {row.group: row.category for row in rows if row.index == row.group}
    for row in rows:
        right = find_option(answers[row.index], row.options) == row.answer
        groups[row.group].append(right)
        if row.index == row.group:
            firsts.append(right)
    circular = {group: all(groups[group]) for group in categories}
    by_category: defaultdict[str, list[bool]] = defaultdict(list)
    for group, right in circular.items():
        by_category[categories[group]].append(right)
    means = {name: _share(rights) for name, rights in sorted(by_category.items())}
    return MmbenchScores(_share(list(circular.values())), _share(firsts), means)


def _share(rights: list[bool]) -> float:
    return sum(rights) / len(rights) if rights else 0.0

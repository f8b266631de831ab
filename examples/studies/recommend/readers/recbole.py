"""MovieLens-100K out of the wheel of RecBole 1.2.1, fetched by pip into the user's cache: no row is committed here."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

from .....configs.user_cache import cache_folder
from .....errors import ExpertFlowError
from .rows import BadRows, DataError, Interaction, ItemFacts, Ratings, build_ratings
from .values import STARS, parse_rating

WHEEL = "recbole-1.2.1-py3-none-any.whl"
INSIDE = "recbole/dataset_example/ml-100k/ml-100k"
HEADERS = {
    "inter": "user_id:token item_id:token rating:float timestamp:float",
    "item": "item_id:token movie_title:token_seq release_year:token class:token_seq",
    "user": "user_id:token age:token gender:token occupation:token zip_code:token",
}
"""Typed headers of RecBole's files, blanks for tabs."""
USER_FIELDS = ("age", "gender", "occupation", "zip")


class DownloadError(ExpertFlowError):
    """The wheel could not be fetched."""

    code = "download"


def fetch_wheel(folder: Path | None = None) -> Path:
    """Return the wheel, from the cache or fetched by `pip download` of this interpreter. Raises DownloadError."""
    folder = folder or cache_folder() / "studies"
    wheel = folder / WHEEL
    if not wheel.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "recbole==1.2.1", "-d", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode or not wheel.is_file():
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            remedy = f"Give a folder with --data, or put {WHEEL} into {folder}"
            raise DownloadError(f"pip could not fetch recbole 1.2.1: {reason}", "MovieLens-100K", remedy)
    return wheel


def read_recbole(wheel: Path, bad: BadRows) -> Ratings:
    """Read the data set inside the wheel, without unpacking or importing it. Raises DataError."""
    facts = {row[0]: ItemFacts(row[1], tuple(row[3].split()), _year(row[2])) for _, row in _table(wheel, "item", bad)}
    users = [row for _, row in _table(wheel, "user", bad)]
    fields = {name: {row[0]: row[at] for row in users} for at, name in enumerate(USER_FIELDS, 1)}
    return build_ratings("MovieLens-100K", _interactions(wheel, bad), facts, fields)


def _interactions(wheel: Path, bad: BadRows) -> Iterator[Interaction]:
    for line, (user, item, rating, seconds) in _table(wheel, "inter", bad):
        try:
            yield Interaction(user, item, parse_rating(rating, STARS), int(float(seconds)))
        except ValueError as error:
            reason = str(error) if str(error).startswith("rating") else "no number"
            bad.report(wheel / f"{INSIDE}.inter", line, reason, rating)


def _table(wheel: Path, kind: str, bad: BadRows) -> Iterator[tuple[int, list[str]]]:
    """Yield line and cells of one of its three files. Raises DataError if it is not there or has another header."""
    place = wheel / f"{INSIDE}.{kind}"
    try:
        text = zipfile.ZipFile(wheel).read(f"{INSIDE}.{kind}").decode("utf-8")
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"is not there: {error}", str(place), f"Remove {wheel.name} to fetch it again") from error
    header, *lines = text.splitlines()
    names = HEADERS[kind].split()
    if header.split("\t") != names:
        raise DataError(f"must begin with the header {HEADERS[kind]!r}, not {header[:80]!r}", f"{place}:1")
    for line, row in enumerate(lines, 2):
        cells = row.split("\t")
        if len(cells) == len(names):
            yield line, cells
        else:
            bad.report(place, line, f"has {len(cells)} fields, not {len(names)}", row)


def _year(text: str) -> int:
    return int(text) if text.isdigit() else 0

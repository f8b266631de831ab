"""A folder of data, whose format is told by the files in it."""

from __future__ import annotations

from pathlib import Path

from .amazon import keep_earliest, read_amazon, read_amazon_split
from .movielens import read_ml1m, read_ml20m, read_ml100k
from .recbole import fetch_wheel, read_recbole
from .rows import BadRows, DataError, Ratings, build_ratings

FORMATS = {
    "ratings.dat": read_ml1m,
    "u.data": read_ml100k,
    "ratings.csv": read_ml20m,
    "rating.csv": read_ml20m,
}
"""File that tells a format -> its reader."""


def read_folder(folder: Path, bad: BadRows) -> Ratings:
    """Read MovieLens-20M, -1M or -100K or Amazon 2018 or 2023 from a folder. Raises DataError for anything else."""
    if not folder.is_dir():
        raise DataError("is no folder", str(folder), "Unpack the data set and name its folder")
    for name, reader in FORMATS.items():
        if (folder / name).is_file():
            return reader(folder, bad)
    splits = sorted(folder.glob("*.csv"))
    if splits:
        rows = [row for file in splits for row in read_amazon_split(file, bad)]
        return build_ratings(f"Amazon 2023 {splits[0].name.partition('.')[0]}", keep_earliest(rows))
    return read_amazon(folder, bad)


def read_default(bad: BadRows) -> Ratings:
    """Read MovieLens-100K, fetched into the user's cache once. Raises DownloadError, DataError."""
    return read_recbole(fetch_wheel(), bad)

"""MovieLens 20M (and its copy on Kaggle), 1M and 100K as GroupLens publishes them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from .lines import read_fields, read_table
from .rows import BadRows, DataError, Interaction, ItemFacts, Ratings, build_ratings
from .values import HALVES, STARS, parse_rating, parse_seconds, split_year

NO_GENRES = "(no genres listed)"
OCCUPATIONS = (
    "other", "academic", "artist", "clerical", "student", "customer service", "doctor", "executive", "farmer",
    "homemaker", "K-12 student", "lawyer", "programmer", "retired", "sales", "scientist", "self-employed", "technician",
    "tradesman", "unemployed", "writer",
)  # fmt: skip
"""Occupations of MovieLens 1M by their code."""


def read_ml20m(folder: Path, bad: BadRows) -> Ratings:
    """Read ratings.csv and movies.csv, or rating.csv and movie.csv of Kaggle's copy. Raises DataError."""
    ratings, movies = first_file(folder, "ratings.csv", "rating.csv"), first_file(folder, "movies.csv", "movie.csv")
    rows = _csv_ratings(ratings, bad)
    return build_ratings("MovieLens-20M", rows, _csv_movies(movies, bad))


def read_links(folder: Path, bad: BadRows) -> dict[str, tuple[str, str]]:
    """Return movie -> its IMDb and TMDB id out of links.csv: text, since IMDb's begin with zeros; TMDB's may be ""."""
    file = first_file(folder, "links.csv", "link.csv")
    return {row["movieId"]: (row["imdbId"], row["tmdbId"]) for _, row in read_csv(file, "movieId,imdbId,tmdbId", bad)}


def read_ml1m(folder: Path, bad: BadRows) -> Ratings:
    """Read ratings.dat, movies.dat and users.dat: `::` between fields, latin-1. Raises DataError."""
    rows = (row for line, cells in read_fields(folder / "ratings.dat", "::", 4, bad, "latin-1")
            if (row := _interaction(folder / "ratings.dat", line, cells, STARS, bad)) is not None)  # fmt: skip
    facts = {
        movie: _facts(title, genres)
        for _, (movie, title, genres) in read_fields(folder / "movies.dat", "::", 3, bad, "latin-1")
    }
    users = [cells for _, cells in read_fields(folder / "users.dat", "::", 5, bad, "latin-1")]
    fields = {name: {row[0]: row[at] for row in users} for at, name in ((1, "gender"), (2, "age"), (4, "zip"))}
    fields["occupation"] = {row[0]: _occupation(row[3]) for row in users}
    return build_ratings("MovieLens-1M", rows, facts, fields)


def read_ml100k(folder: Path, bad: BadRows) -> Ratings:
    """Read u.data, u.item, u.user and u.genre: tabs in the first, `|` in the others, latin-1. Raises DataError."""
    file = folder / "u.data"
    rows = (row for line, cells in read_fields(file, "\t", 4, bad)
            if (row := _interaction(file, line, cells, STARS, bad)) is not None)  # fmt: skip
    genres = [name for _, (name, _) in read_fields(folder / "u.genre", "|", 2, bad, "latin-1")]
    items = read_fields(folder / "u.item", "|", 5 + len(genres), bad, "latin-1")
    facts = {cells[0]: _flagged(cells, genres) for _, cells in items}
    users = [cells for _, cells in read_fields(folder / "u.user", "|", 5, bad, "latin-1")]
    names = ((1, "age"), (2, "gender"), (3, "occupation"), (4, "zip"))
    return build_ratings("MovieLens-100K", rows, facts, {n: {row[0]: row[at] for row in users} for at, n in names})


def first_file(folder: Path, *names: str) -> Path:
    """Return the first of these files that is there. Raises DataError that lists what the folder holds."""
    for name in names:
        if (folder / name).is_file():
            return folder / name
    found = ", ".join(sorted(file.name for file in folder.iterdir())[:12]) if folder.is_dir() else "no folder"
    raise DataError(f"has none of {', '.join(names)}, but: {found}", str(folder), "Unpack the published archive")


def read_csv(file: Path, header: str, bad: BadRows) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield line and cells by name of a UTF-8 CSV file, whose quotes may hold commas.

    Raises DataError if the header is another, or for a row with a missing field.
    """
    names = header.split(",")
    rows = read_table(file)
    _, first = next(rows, (1, []))
    if first != names:
        raise DataError(f"must begin with the header {header}, not {','.join(first)[:80]!r}", f"{file}:1")
    for line, cells in rows:
        if len(cells) == len(names):
            yield line, dict(zip(names, cells, strict=True))
        else:
            bad.report(file, line, f"has {len(cells)} fields, not {len(names)}", ",".join(cells))


def _csv_ratings(file: Path, bad: BadRows) -> Iterator[Interaction]:
    for line, row in read_csv(file, "userId,movieId,rating,timestamp", bad):
        interaction = _interaction(file, line, list(row.values()), HALVES, bad)
        if interaction is not None:
            yield interaction


def _csv_movies(file: Path, bad: BadRows) -> dict[str, ItemFacts]:
    rows = read_csv(file, "movieId,title,genres", bad)
    return {row["movieId"]: _facts(row["title"], row["genres"]) for _, row in rows}


def _interaction(
    file: Path, line: int, cells: list[str], scale: tuple[float, float, float], bad: BadRows
) -> Interaction | None:
    """Return the row; None if it is bad and is skipped."""
    user, item, rating, time = cells
    try:
        if not user or not item:
            raise ValueError("no user or no item")
        return Interaction(user, item, parse_rating(rating, scale), parse_seconds(time))
    except ValueError as error:
        reason = str(error) if str(error).startswith(("rating", "no user")) else "no number"
        bad.report(file, line, reason, " ".join(cells))
        return None


def _facts(title: str, genres: str) -> ItemFacts:
    labels = () if genres == NO_GENRES else tuple(genre for genre in genres.split("|") if genre)
    name, year = split_year(title)
    return ItemFacts(name, labels, year)


def _flagged(cells: list[str], genres: list[str]) -> ItemFacts:
    """Return the facts of a line of u.item, which has a flag for each genre; the title "unknown" has no year."""
    name, year = split_year(cells[1])
    return ItemFacts(name, tuple(genre for genre, flag in zip(genres, cells[5:], strict=True) if flag == "1"), year)


def _occupation(code: str) -> str:
    return OCCUPATIONS[int(code)] if code.isdigit() and int(code) < len(OCCUPATIONS) else code

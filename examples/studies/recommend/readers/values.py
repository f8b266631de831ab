"""Parsers of single values: ratings within a scale, times, years in titles."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime

HALVES = (0.5, 5.0, 0.5)
STARS = (1.0, 5.0, 1.0)
"""Lowest and highest rating, and the step between two."""
MAX_TIME = 10**15
"""Far behind every time in seconds or milliseconds, and within 64 bits."""
_YEAR = re.compile(r"\((\d{4})(?:[-–]\d{0,4})?\)\s*$")


def parse_rating(text: object, scale: tuple[float, float, float]) -> float:
    """Return a rating on this scale. Raises ValueError for no number, or one outside the scale."""
    low, high, step = scale
    rating = float(str(text))
    if not low <= rating <= high or not math.isclose(rating / step, round(rating / step)):
        raise ValueError("rating outside the scale")
    return rating


def parse_time(value: object) -> int:
    """Return a whole number of seconds or milliseconds since 1970. Raises ValueError for none, or one out of range."""
    number = int(value) if isinstance(value, int | str) else float(str(value))
    if not abs(number) <= MAX_TIME:
        raise ValueError("no number")
    return int(number)


def parse_seconds(text: str) -> int:
    """Return seconds since 1970, UTC, of seconds or of a date as Kaggle's copy writes it. Raises ValueError."""
    if text.isdigit():
        return parse_time(text)
    return int(datetime.strptime(text, "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC).timestamp())


def split_year(title: str) -> tuple[str, int]:
    """Return the title without its year "(1995)", and the year; 0 if the title has none."""
    found = _YEAR.search(title)
    return (title[: found.start()].rstrip(), int(found[1])) if found else (title.strip(), 0)

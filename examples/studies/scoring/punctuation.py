"""Punctuation as the VQA challenge removes it, shared by the scorers that follow it."""

from __future__ import annotations

import re

MARKS = ';/[]"{}()=+\\_-><@`,?!'
_DIGITS_WITH_COMMA = re.compile(r"\d,\d")
_POINT_BEFORE_NO_DIGIT = re.compile(r"\.(?!\d)")
_POINT_BETWEEN_NO_DIGITS = re.compile(r"(?<!\d)\.(?!\d)")
_MAX_POINTS = int(re.UNICODE)
"""The published scorers pass a flag where the count stands, so that they remove at most 32 points."""


def replace_punctuation(text: str, keep_decimal_point: bool = False) -> str:
    """Return the text without marks, as the VQA challenge does it.

    A mark is removed if it touches a blank anywhere in the text, or if the text has a comma between digits; otherwise
    a blank takes its place. A point goes unless a digit follows, or (`keep_decimal_point`, VLMEvalKit) precedes.
    """
    has_comma = bool(_DIGITS_WITH_COMMA.search(text))
    result = text
    for mark in MARKS:
        removed = has_comma or f"{mark} " in text or f" {mark}" in text
        result = result.replace(mark, "" if removed else " ")
    points = _POINT_BETWEEN_NO_DIGITS if keep_decimal_point else _POINT_BEFORE_NO_DIGIT
    return points.sub("", result, count=_MAX_POINTS)

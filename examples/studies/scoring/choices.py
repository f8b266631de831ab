"""Options found in a free answer without a judge, as VLMEvalKit does it."""

from __future__ import annotations

from collections.abc import Mapping

_MARKS = ".()[],:;!*#{}"
_LAST_WORDS = 4
NO_OPTION = ""
REFUSED = "Z"
_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)


def find_option(answer: str, options: Mapping[str, str]) -> str:
    """Return the letter of the option that the answer names, `NO_OPTION` if it names none or several.

    `options`: letter -> text. A letter counts if it is the only one among the words and one of the last four; else a
    text counts if it is the only one inside the answer, unless the answer is twice as long as all texts together.
    """
    return _find_letter(answer, options) or _find_text(answer, options)


def _find_letter(answer: str, options: Mapping[str, str]) -> str:
    if any(refusal in answer for refusal in _REFUSALS):
        return REFUSED
    words = answer.translate({ord(mark): " " for mark in _MARKS}).split()
    named = [letter for letter in options if letter in words]
    if len(named) == 1 and words.index(named[0]) >= len(words) - _LAST_WORDS:
        return named[0]
    return REFUSED if not named and REFUSED in words else NO_OPTION


def _find_text(answer: str, options: Mapping[str, str]) -> str:
    if len(answer) > 2 * sum(len(text) for text in options.values()):
        return NO_OPTION
    named = [letter for letter, text in options.items() if text.lower() in answer.lower()]
    return named[0] if len(named) == 1 else NO_OPTION

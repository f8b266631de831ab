"""The questions of a run: the study's own scenes, or a published set in a folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from expertflow import ImagePrompt
from expertflow.errors import UsageError

from ..scenes.questions import IN_A_SENTENCE
from ..scoring.bad_rows import BadRows
from ..scoring.pope import RULES, PopeQuestion, Rule, pope_file_name, read_pope
from .images import OBJECTS_FILE, PREFIX

_PREFIXES = (PREFIX, "coco", "aokvqa", "gqa")
_IMAGE_FOLDERS = ("images", "val2014", "")
PAIR = 2
"""Questions about a present object and about an absent one behind it."""


@dataclass(frozen=True)
class AskedQuestion:
    """A question with the file's rule and the image's path."""

    rule: Rule
    question: PopeQuestion
    image: Path

    def prompt(self, in_a_sentence: bool = False) -> ImagePrompt:
        """Return the question as POPE has it, or with the wish for a sentence behind it."""
        return ImagePrompt(self.question.text + (IN_A_SENTENCE if in_a_sentence else ""), [self.image])


def load_questions(folder: Path, bad: BadRows) -> list[AskedQuestion]:
    """Return the questions of all three files of the folder.

    Raises UsageError if the files are missing, BadRowError for a bad line or one whose image is missing.
    """
    prefix = next((each for each in _PREFIXES if (folder / pope_file_name("random", each)).is_file()), "")
    if not prefix:
        names = ", ".join(pope_file_name("random", each) for each in _PREFIXES)
        raise UsageError(f"holds none of {names}", str(folder), "Name the folder of POPE's three files")
    images = _Images(folder)
    return [
        AskedQuestion(rule, question, images.found[question.image])
        for rule in RULES
        for question in read_pope(folder / pope_file_name(rule, prefix), bad, images.has)
    ]


class _Images:
    """Finds images by name in the folder or in its usual subfolders."""

    def __init__(self, folder: Path) -> None:
        self._folders = [folder / name for name in _IMAGE_FOLDERS]
        self.found: dict[str, Path] = {}

    def has(self, name: str) -> bool:
        """Return whether the image is there."""
        path = next((path for folder in self._folders if (path := folder / name).is_file()), None)
        if path is not None:
            self.found[name] = path
        return path is not None


def subset(questions: list[AskedQuestion], images: int) -> list[AskedQuestion]:
    """Return six questions about each of the first images: one present and one absent object of each file."""
    chosen: dict[tuple[Rule, str], list[AskedQuestion]] = {}
    for each in questions:
        chosen.setdefault((each.rule, each.question.image), []).append(each)
    names = list(dict.fromkeys(each.question.image for each in questions))[:images]
    picked: list[AskedQuestion] = []
    for name in names:
        for turn, rule in enumerate(RULES):
            picked += chosen.get((rule, name), [])[PAIR * turn : PAIR * (turn + 1)]
    return picked


def images_with_unseen_pairs(folder: Path) -> set[str]:
    """Return the names of images with objects that training never showed together; none for a published set."""
    file = folder / OBJECTS_FILE
    if not file.is_file():
        return set()
    facts = json.loads(file.read_text(encoding="utf-8"))
    return {name for name, fact in facts.items() if fact["unseen_pair"]}

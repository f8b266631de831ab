"""POPE's files for any set of images with known objects: three questions for present, three for absent objects each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np

from ..scenes.classes import with_article
from ..scoring.pope import PopeQuestion, Rule

POSITIVES = 3
"""Questions about present objects for each image: its first objects; as many about absent ones."""


class ObjectCounts:
    """How often objects occur, alone and together, over a set of images."""

    def __init__(self, images: Mapping[str, Sequence[str]]) -> None:
        self.images: Counter[str] = Counter()
        self._together: Counter[tuple[str, str]] = Counter()
        for objects in images.values():
            kinds = sorted(set(objects))
            self.images.update(kinds)
            self._together.update(combinations(kinds, 2))

    def together(self, one: str, other: str) -> int:
        """Return the number of images with both."""
        return self._together[(min(one, other), max(one, other))]


def build_pope(images: Mapping[str, Sequence[str]], rule: Rule, seed: int = 0) -> list[PopeQuestion]:
    """Return the questions of one rule; `images` maps a name to its objects, the first ones are asked for.

    Yes and no alternate. After each present object an absent one is asked for: a random one; the one that most images
    have (popular); or the one that is most often together with the object just asked for (adversarial), a random one
    where none ever is. No object is asked for twice of one image.
    """
    counts = ObjectCounts(images)
    generator = np.random.default_rng(seed)
    questions: list[PopeQuestion] = []
    for image, objects in images.items():
        asked: set[str] = set()
        for present in list(dict.fromkeys(objects))[:POSITIVES]:
            absent = sorted(set(counts.images) - set(objects) - asked)
            negative = _choose_absent(rule, present, absent, counts, generator)
            asked.add(negative)
            questions += _pair(image, present, negative, len(questions))
    return questions


def _pair(image: str, present: str, absent: str, asked: int) -> tuple[PopeQuestion, PopeQuestion]:
    yes, no = (f"Is there {with_article(name)} in the image?" for name in (present, absent))
    return PopeQuestion(asked + 1, image, yes, "yes"), PopeQuestion(asked + 2, image, no, "no")


def _choose_absent(
    rule: Rule, present: str, absent: list[str], counts: ObjectCounts, generator: np.random.Generator
) -> str:
    drawn = absent[generator.integers(len(absent))]
    if rule == "random":
        return drawn
    if rule == "popular":
        return max(absent, key=lambda name: (counts.images[name], name))
    together = max(absent, key=lambda name: (counts.together(present, name), name))
    return together if counts.together(present, together) else drawn

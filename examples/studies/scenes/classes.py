"""Object classes of the scenes: a shape in a colour, with a popularity and a group whose members keep company."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "diamond", "crescent")
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 39, 40),
    "orange": (255, 140, 20),
    "yellow": (240, 215, 30),
    "green": (40, 160, 60),
    "blue": (40, 80, 220),
    "purple": (150, 60, 190),
    "brown": (125, 80, 45),
    "black": (25, 25, 25),
}
"""Name -> red, green, blue, 0 to 255."""
GROUPS = 8
HELD_OUT_PAIRS = 16
"""Pairs of classes that no training scene holds together."""


@dataclass(frozen=True, order=True)
class ObjectClass:
    """A kind of object that a question can name."""

    index: int
    shape: str
    colour: str
    group: int

    @property
    def name(self) -> str:
        """Return the name in a question, such as "red circle"."""
        return f"{self.colour} {self.shape}"


@lru_cache(maxsize=1)
def object_classes() -> tuple[ObjectClass, ...]:
    """Return the 32 classes: each shape in four colours, each group with four shapes."""
    colours = list(COLOURS)
    pairs = [(shape, 2 * step + shape % 2) for shape in range(len(SHAPES)) for step in range(4)]
    return tuple(
        ObjectClass(index, SHAPES[shape], colours[colour], (shape + colour - shape % 2) % GROUPS)
        for index, (shape, colour) in enumerate(pairs)
    )


def class_by_name(name: str) -> ObjectClass | None:
    """Return the class called `name`, None if there is none."""
    return next((each for each in object_classes() if each.name == name), None)


def with_article(name: str) -> str:
    """Return the name behind "a" or "an"."""
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


@lru_cache(maxsize=1)
def popularity() -> np.ndarray:
    """Return float64 [classes], the probability of each class as the first object: a long tail."""
    count = len(object_classes())
    order = np.random.default_rng(17).permutation(count)
    weights = 1.0 / (order + 4.0)
    return weights / weights.sum()


@lru_cache(maxsize=1)
def held_out_pairs() -> frozenset[frozenset[int]]:
    """Return the pairs of class indices that training never shows together, half of them within a group."""
    generator = np.random.default_rng(23)
    classes = object_classes()
    within, across = [], []
    for first in range(len(classes)):
        for second in range(first + 1, len(classes)):
            same = classes[first].group == classes[second].group
            (within if same else across).append(frozenset((first, second)))
    half = HELD_OUT_PAIRS // 2
    chosen = [within[place] for place in generator.choice(len(within), half, replace=False)]
    chosen += [across[place] for place in generator.choice(len(across), half, replace=False)]
    return frozenset(chosen)

"""Layouts of scenes: which objects stand where. The names of a scene's objects are exact by construction."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np

from .classes import ObjectClass, held_out_pairs, object_classes, popularity

SIZE = 64
"""Pixels of a side of every scene."""
MIN_OBJECTS, MAX_OBJECTS = 3, 5
AFFINITY = 0.6
"""Share of further objects that come from the first object's group."""
_MIN_SIDE, _MAX_SIDE = 14, 21
_TRIES = 60


@dataclass(frozen=True)
class PlacedObject:
    """An object and its box in pixels."""

    kind: ObjectClass
    left: int
    top: int
    side: int


@dataclass(frozen=True)
class Scene:
    """Objects in the order in which they were drawn, no class twice, on a plain background."""

    objects: tuple[PlacedObject, ...]
    background: tuple[int, int, int]

    @property
    def names(self) -> list[str]:
        """Return the names of the objects."""
        return [each.kind.name for each in self.objects]

    @property
    def classes(self) -> set[int]:
        """Return the indices of the classes that are there."""
        return {each.kind.index for each in self.objects}


def has_held_out_pair(classes: set[int]) -> bool:
    """Return whether two of these class indices are never together in training."""
    return any(frozenset(pair) in held_out_pairs() for pair in combinations(sorted(classes), 2))


def training_scene(generator: np.random.Generator) -> Scene:
    """Draw a scene without a held-out pair."""
    while True:
        chosen = _choose_classes(generator, [])
        if not has_held_out_pair(set(chosen)):
            return _placed(generator, chosen)


def unseen_scene(generator: np.random.Generator, unseen_pair: bool) -> Scene:
    """Draw a scene with a held-out pair, or one without."""
    if not unseen_pair:
        return training_scene(generator)
    pairs = sorted(sorted(pair) for pair in held_out_pairs())
    return _placed(generator, _choose_classes(generator, list(pairs[generator.integers(len(pairs))])))


def _choose_classes(generator: np.random.Generator, chosen: list[int]) -> list[int]:
    count = int(generator.integers(MIN_OBJECTS, MAX_OBJECTS + 1))
    groups = np.array([each.group for each in object_classes()])
    while len(chosen) < count:
        weights = popularity().copy()
        weights[chosen] = 0
        if chosen and generator.random() < AFFINITY and (weights * (groups == groups[chosen[0]])).any():
            weights *= groups == groups[chosen[0]]
        chosen.append(int(generator.choice(len(weights), p=weights / weights.sum())))
    return chosen


def _placed(generator: np.random.Generator, chosen: list[int]) -> Scene:
    background = tuple(int(value) for value in generator.integers(205, 250, 3))
    while True:
        objects = _try_places(generator, chosen)
        if len(objects) == len(chosen):
            return Scene(tuple(objects), background)  # pyright: ignore[reportArgumentType]


def _try_places(generator: np.random.Generator, chosen: list[int]) -> list[PlacedObject]:
    placed: list[PlacedObject] = []
    for index in chosen:
        for _ in range(_TRIES):
            side = int(generator.integers(_MIN_SIDE, _MAX_SIDE + 1))
            left, top = (int(value) for value in generator.integers(0, SIZE - side + 1, 2))
            candidate = PlacedObject(object_classes()[index], left, top, side)
            if not any(_overlap(candidate, other) for other in placed):
                placed.append(candidate)
                break
        else:
            return []
    return placed


def _overlap(one: PlacedObject, other: PlacedObject) -> bool:
    apart_x = one.left + one.side <= other.left or other.left + other.side <= one.left
    apart_y = one.top + one.side <= other.top or other.top + other.side <= one.top
    return not (apart_x or apart_y)

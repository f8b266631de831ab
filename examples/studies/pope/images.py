"""The study's own set of images: 500 scenes, two in five with objects that training never showed together."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..scenes.drawing import draw_scene
from ..scenes.layout import Scene, has_held_out_pair, unseen_scene
from ..scoring.pope import RULES, pope_file_name, write_pope
from .build import build_pope

IMAGES = 500
UNSEEN_SHARE = 0.4
SEED = 900_001
"""Of the test scenes; training draws from others."""
PREFIX = "scenes"
OBJECTS_FILE = "objects.json"


@dataclass(frozen=True)
class SceneImage:
    """A scene with its file name."""

    name: str
    scene: Scene

    @property
    def unseen(self) -> bool:
        """Return whether two of its objects were never together in training."""
        return has_held_out_pair(self.scene.classes)


def scene_images(count: int = IMAGES, seed: int = SEED) -> list[SceneImage]:
    """Return the test scenes, the same ones at every call."""
    generator = np.random.default_rng(seed)
    images = []
    for number in range(count):
        unseen = number % 5 < round(5 * UNSEEN_SHARE)
        images.append(SceneImage(f"scene_{number:06d}.png", unseen_scene(generator, unseen)))
    return images


def write_scene_set(folder: Path, count: int = IMAGES, seed: int = SEED) -> None:
    """Write the images, the three POPE files and the objects of each image, as a published set lies in a folder."""
    images = scene_images(count, seed)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for image in images:
        draw_scene(image.scene).save(folder / "images" / image.name)
    named = {image.name: image.scene.names for image in images}
    for rule in RULES:
        write_pope(folder / pope_file_name(rule, PREFIX), build_pope(named, rule, seed))
    facts = {image.name: {"objects": image.scene.names, "unseen_pair": image.unseen} for image in images}
    (folder / OBJECTS_FILE).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")

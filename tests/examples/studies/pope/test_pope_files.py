"""POPE's three rules on counted objects, and the study's own set of files."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from expertflow.examples.studies.pope.build import build_pope
from expertflow.examples.studies.pope.images import scene_images, write_scene_set
from expertflow.examples.studies.scoring.bad_rows import BadRows
from expertflow.examples.studies.scoring.pope import RULES, Rule, pope_file_name, read_pope
from PIL import Image

KITCHEN = ["cup", "knife", "oven"]
IMAGES = {
    "1": [*KITCHEN, "apple"],
    "2": KITCHEN,
    "3": ["cup", "dog", "tree"],
    "4": ["dog", "tree", "sun"],
    "5": ["dog", "sun", "bee"],
    "6": ["dog", "cup", "bee"],
}


@pytest.mark.parametrize("rule", RULES)
def test_yes_and_no_alternate_over_the_first_three_objects(rule: Rule) -> None:
    questions = build_pope(IMAGES, rule)
    assert [each.question_id for each in questions] == list(range(1, 6 * len(IMAGES) + 1))
    assert [each.label for each in questions] == ["yes", "no"] * (3 * len(IMAGES))
    for image, objects in IMAGES.items():
        names = [each.object_name for each in questions if each.image == image]
        assert names[::2] == objects[:3] and len(set(names)) == 6
        assert not set(names[1::2]) & set(objects)


def test_popular_asks_for_what_most_images_have() -> None:
    first = [each.object_name for each in build_pope(IMAGES, "popular")][:6]
    assert first[1] == "dog" and set(first[3::2]) == {"tree", "sun"}


def test_adversarial_asks_for_company_that_is_missing() -> None:
    names = [each.object_name for each in build_pope(IMAGES, "adversarial") if each.image == "4"]
    assert names[:2] == ["dog", "cup"]
    assert [each.text for each in build_pope(IMAGES, "random") if "apple" in each.text][0].startswith("Is there an a")


def test_the_set_lies_in_a_folder_as_a_published_one_does(tmp_path: Path) -> None:
    write_scene_set(tmp_path, count=20)
    facts = json.loads((tmp_path / "objects.json").read_text())
    assert Counter(each["unseen_pair"] for each in facts.values()) == {True: 8, False: 12}
    for rule in RULES:
        questions = read_pope(tmp_path / pope_file_name(rule, "scenes"), BadRows())
        assert len(questions) == 120
        for each in questions:
            assert (each.object_name in facts[each.image]["objects"]) == (each.label == "yes")
    with Image.open(tmp_path / "images" / "scene_000000.png") as image:
        assert image.size == (64, 64)


def test_negatives_are_more_popular_by_rule() -> None:
    images = {image.name: image.scene.names for image in scene_images(200)}
    asked = {rule: [each for each in build_pope(images, rule) if each.label == "no"] for rule in RULES}
    held = Counter(name for objects in images.values() for name in set(objects))
    popularity = {rule: sum(held[each.object_name] for each in asked[rule]) for rule in RULES}
    assert popularity["popular"] > popularity["adversarial"] > popularity["random"]

"""Scenes hold exactly the objects they say, and training scenes never a held-out pair."""

from __future__ import annotations

from collections import Counter

import numpy as np
from expertflow.examples.studies.scenes.classes import COLOURS, held_out_pairs, object_classes, popularity, with_article
from expertflow.examples.studies.scenes.drawing import scene_pixels
from expertflow.examples.studies.scenes.layout import Scene, has_held_out_pair, training_scene, unseen_scene
from expertflow.examples.studies.scenes.questions import (
    LETTERS,
    absent_names,
    choice_prompt,
    identity_question,
    presence_question,
    random_choice,
    random_question,
)

SCENES = 300


def scenes(seed: int = 1) -> list[Scene]:
    generator = np.random.default_rng(seed)
    return [training_scene(generator) for _ in range(SCENES)]


def test_classes_fill_shapes_colours_and_groups_evenly() -> None:
    classes = object_classes()
    assert len({each.name for each in classes}) == 32
    assert set(Counter(each.group for each in classes).values()) == {4}
    assert all(len({each.shape for each in classes if each.group == group}) == 4 for group in range(8))


def test_every_object_is_drawn_in_its_colour_inside_its_box() -> None:
    for scene in scenes()[:40]:
        pixels = scene_pixels(scene).astype(int)
        outside = np.ones(pixels.shape[:2], bool)
        for placed in scene.objects:
            box = np.s_[placed.top : placed.top + placed.side, placed.left : placed.left + placed.side]
            near = np.abs(pixels[box] - COLOURS[placed.kind.colour]).sum(-1) < 12
            assert 0.12 < near.mean() < 0.95, placed
            outside[box] = False
        assert (np.abs(pixels[outside] - scene.background).sum(-1) == 0).mean() > 0.97


def test_training_never_shows_a_held_out_pair_and_testing_can() -> None:
    assert not any(has_held_out_pair(scene.classes) for scene in scenes())
    generator = np.random.default_rng(2)
    unseen = [unseen_scene(generator, True) for _ in range(50)]
    assert all(has_held_out_pair(scene.classes) for scene in unseen) and len(held_out_pairs()) == 16


def test_objects_keep_company_and_some_are_popular() -> None:
    popular = set(popularity().argsort()[-8:].tolist())
    assert popularity()[list(popular)].sum() > 0.5
    assert np.mean([scene.objects[0].kind.index in popular for scene in scenes()]) > 0.4  # a quarter if all were alike
    pairs = [(scene.objects[0].kind.group, each.kind.group) for scene in scenes() for each in scene.objects[1:]]
    assert np.mean([one == other for one, other in pairs]) > 0.4


def test_one_seed_gives_the_same_scenes() -> None:
    assert scenes(5) == scenes(5) != scenes(6)


def test_presence_is_asked_evenly_and_independently() -> None:
    generator = np.random.default_rng(3)
    asked = [random_question(scene, generator) for scene in scenes() for _ in range(3)]
    presence = [each.answer.startswith("Yes") for each in asked if each.answer.startswith(("Yes", "No"))]
    assert 0.65 < len(presence) / len(asked) < 0.85 and 0.42 < np.mean(presence) < 0.58


def test_choices_hold_the_right_answer_once() -> None:
    generator = np.random.default_rng(4)
    for scene in scenes():
        question = identity_question(scene, generator)
        assert [name in scene.names for name in question.options] == [place == question.right for place in range(4)]
        other = random_choice(scene, generator)
        assert len(set(other.options)) == 4
        assert choice_prompt(other).answer == LETTERS[other.right]
        assert f"{LETTERS[other.right]}. {other.options[other.right]}\n" in choice_prompt(other).prompt


def test_articles_and_names() -> None:
    assert with_article("orange star") == "an orange star"
    assert presence_question("orange star", True, in_a_sentence=False).prompt == "Is there an orange star in the image?"
    scene = scenes()[0]
    assert set(absent_names(scene)) | set(scene.names) == {each.name for each in object_classes()}

"""Questions about a scene with their answers: presence, colour, shape, count, and four choices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .classes import COLOURS, SHAPES, object_classes, with_article
from .layout import MAX_OBJECTS, MIN_OBJECTS, Scene

LETTERS = "ABCD"
IN_A_SENTENCE = "\nAnswer in a sentence."
"""Follows a question; without it the models answer in a word."""
SELECT_ANSWER = "\nPlease select the correct answer from the options above."
LETTER_ANSWER = "\nAnswer with the option's letter from the given choices directly."
DESCRIPTION = "What objects are in the image?"
PRESENCE_FORMS = (
    "Is there {} in the image?",
    "Is there {} in the picture?",
    "Does the image contain {}?",
    "Can you see {} in the image?",
)
"""The first is POPE's own."""


@dataclass(frozen=True)
class Question:
    """A prompt of text and the one right answer."""

    prompt: str
    answer: str


@dataclass(frozen=True)
class ChoiceQuestion:
    """A question with options, of which one is right; `kind` names the ability that it tests."""

    kind: str
    question: str
    options: tuple[str, ...]
    right: int


def presence_sentence(name: str, present: bool) -> str:
    """Return the answer in a sentence."""
    return f"Yes, there is {with_article(name)} in the image." if present else f"No, there is no {name} in the image."


def presence_question(name: str, present: bool, in_a_sentence: bool, form: str = PRESENCE_FORMS[0]) -> Question:
    """Return the question for an object, to be answered in a word or in a sentence."""
    prompt = form.format(with_article(name))
    if in_a_sentence:
        return Question(prompt + IN_A_SENTENCE, presence_sentence(name, present))
    return Question(prompt, "Yes" if present else "No")


def description_question(scene: Scene) -> Question:
    """Ask for all objects, named from left to right."""
    names = [each.kind.name for each in sorted(scene.objects, key=lambda each: (each.left, each.top))]
    return Question(DESCRIPTION, ", ".join(names) + ".")


def absent_names(scene: Scene) -> list[str]:
    """Return the names of the classes that the scene does not hold."""
    return [each.name for each in object_classes() if each.index not in scene.classes]


def unique_objects(scene: Scene, of: Callable[[int], str]) -> list[int]:
    """Return the places of objects whose property `of` no other object of the scene shares."""
    values = [of(place) for place in range(len(scene.objects))]
    return [place for place, value in enumerate(values) if values.count(value) == 1]


def random_question(scene: Scene, generator: np.random.Generator) -> Question:
    """Draw a training question: three in four ask for presence, half of these for an object that is there."""
    kind = generator.random()
    if kind < 0.75:
        return random_presence(scene, generator)
    if kind < 0.83:
        return choice_prompt(random_choice(scene, generator), letters_only=bool(generator.random() < 0.5))
    return short_question(_open_question(scene, generator))


def random_presence(scene: Scene, generator: np.random.Generator) -> Question:
    """Draw a question for presence; whether the answer is yes depends on no other question."""
    present = bool(generator.random() < 0.5)
    names = scene.names if present else absent_names(scene)
    name = names[generator.integers(len(names))]
    form = PRESENCE_FORMS[max(0, int(generator.integers(-3, len(PRESENCE_FORMS))))]
    return presence_question(name, present, bool(generator.random() < 0.2), form)


def short_question(question: ChoiceQuestion) -> Question:
    """Return the question without its options, to be answered in a word."""
    return Question(question.question, question.options[question.right])


def choice_prompt(question: ChoiceQuestion, letters_only: bool = False) -> Question:
    """Return the question with its options behind letters, in MMBench's wording or in SEED-Bench's."""
    options = "\n".join(f"{LETTERS[place]}. {option}" for place, option in enumerate(question.options))
    if letters_only:
        prompt = f"{question.question}\n{options}{LETTER_ANSWER}"
    else:
        prompt = f"Question: {question.question}\nOptions:\n{options}{SELECT_ANSWER}"
    return Question(prompt, LETTERS[question.right])


def random_choice(scene: Scene, generator: np.random.Generator) -> ChoiceQuestion:
    """Draw a question with four options."""
    if generator.random() < 0.4:
        return identity_question(scene, generator)
    return _open_question(scene, generator)


def identity_question(scene: Scene, generator: np.random.Generator) -> ChoiceQuestion:
    """Ask which of four objects is there."""
    wrong = generator.choice(absent_names(scene), len(LETTERS) - 1, replace=False).tolist()
    right = scene.names[generator.integers(len(scene.objects))]
    return _shuffled("identity", "Which object is in the image?", right, wrong, generator)


def _open_question(scene: Scene, generator: np.random.Generator) -> ChoiceQuestion:
    ask = (colour_question, shape_question, count_question)[generator.integers(3)]
    return ask(scene, generator) or count_question(scene, generator)


def colour_question(scene: Scene, generator: np.random.Generator) -> ChoiceQuestion | None:
    """Ask for the colour of a shape that occurs once; None where every shape occurs twice."""
    places = unique_objects(scene, lambda place: scene.objects[place].kind.shape)
    if not places:
        return None
    kind = scene.objects[places[generator.integers(len(places))]].kind
    wrong = generator.choice([each for each in COLOURS if each != kind.colour], 3, replace=False).tolist()
    return _shuffled("attribute", f"What color is the {kind.shape}?", kind.colour, wrong, generator)


def shape_question(scene: Scene, generator: np.random.Generator) -> ChoiceQuestion | None:
    """Ask for the shape of a colour that occurs once; None where every colour occurs twice."""
    places = unique_objects(scene, lambda place: scene.objects[place].kind.colour)
    if not places:
        return None
    kind = scene.objects[places[generator.integers(len(places))]].kind
    wrong = generator.choice([each for each in SHAPES if each != kind.shape], 3, replace=False).tolist()
    return _shuffled("shape", f"What shape is the {kind.colour} object?", kind.shape, wrong, generator)


def count_question(scene: Scene, generator: np.random.Generator) -> ChoiceQuestion:
    """Ask for the number of objects."""
    count = len(scene.objects)
    wrong = [str(each) for each in range(MIN_OBJECTS - 1, MAX_OBJECTS + 1) if each != count]
    return _shuffled("counting", "How many objects are in the image?", str(count), wrong[:3], generator)


def _shuffled(kind: str, question: str, right: str, wrong: list[str], generator: np.random.Generator) -> ChoiceQuestion:
    options = [right, *wrong]
    order = generator.permutation(len(options))
    return ChoiceQuestion(kind, question, tuple(options[place] for place in order), int(order.argmin()))

"""VQA-v2: its files, its normalisation of answers, and its accuracy against ten human answers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .bad_rows import BadRows, bad_number, json_array, require_answers
from .contractions import CONTRACTIONS
from .punctuation import replace_punctuation

_NUMBER_WORDS = "zero one two three four five six seven eight nine ten"
_NUMBERS = {word: str(number) for number, word in enumerate(_NUMBER_WORDS.split())} | {"none": "0"}
PEOPLE = 10
"""Answers to each question, as published."""
_ARTICLES = frozenset(("a", "an", "the"))


@dataclass(frozen=True)
class VqaQuestion:
    """A question joined with its annotation."""

    question_id: int
    image_id: int
    text: str
    answers: tuple[str, ...]
    """Of ten people."""
    answer_type: str
    """yes/no, number or other."""
    question_type: str


@dataclass(frozen=True)
class VqaScores:
    """Mean accuracies, 0 to 1."""

    overall: float
    by_answer_type: dict[str, float]
    by_question_type: dict[str, float]


def read_vqa(
    questions_file: Path,
    annotations_file: Path,
    bad: BadRows,
    has_image: Callable[[VqaQuestion], bool] = lambda _: True,
) -> list[VqaQuestion]:
    """Return the questions that have an annotation, in the annotations' order.

    Raises BadRowError for an annotation without a field, without a question, or without ten answers, for an id that is
    no number, and for an image that `has_image` does not know.
    """
    asked = _read_asked(questions_file, bad)
    joined: list[VqaQuestion] = []
    for line, row in json_array(annotations_file, "annotations", _ANNOTATION_FIELDS, bad):
        texts = _answer_texts(row["answers"])
        if what := bad_number(row, ("question_id",)):
            bad.refuse(annotations_file, line, what)
        elif int(row["question_id"]) not in asked:
            bad.refuse(annotations_file, line, f"answers question {row['question_id']}, which nobody asks")
        elif not texts:
            bad.refuse(annotations_file, line, "has no answers with a text")
        elif len(texts) != PEOPLE:
            bad.refuse(annotations_file, line, f"has {len(texts)} answers, not {PEOPLE}")
        elif not has_image(whole := _join(asked[int(row["question_id"])], row, texts)):
            bad.refuse(annotations_file, line, f"is about image {whole.image_id}, which is not in the folder")
        else:
            joined.append(whole)
    return joined


def _read_asked(file: Path, bad: BadRows) -> dict[int, dict[str, Any]]:
    asked: dict[int, dict[str, Any]] = {}
    for line, row in json_array(file, "questions", _QUESTION_FIELDS, bad):
        if what := bad_number(row, ("question_id", "image_id")):
            bad.refuse(file, line, what)
        else:
            asked[int(row["question_id"])] = row
    return asked


_QUESTION_FIELDS = ("question_id", "image_id", "question")
_ANNOTATION_FIELDS = ("question_id", "answers", "answer_type", "question_type")


def _join(question: Mapping[str, object], annotation: Mapping[str, object], texts: tuple[str, ...]) -> VqaQuestion:
    types = str(annotation["answer_type"]), str(annotation["question_type"])
    ids = int(str(question["question_id"])), int(str(question["image_id"]))
    return VqaQuestion(*ids, str(question["question"]), texts, *types)


def _answer_texts(answers: object) -> tuple[str, ...]:
    if not isinstance(answers, list):
        return ()
    texts = [each.get("answer") if isinstance(each, dict) else None for each in answers]
    return tuple(str(text) for text in texts) if all(isinstance(text, str) for text in texts) else ()


def normalise_answer(text: str) -> str:
    """Return the answer without marks and articles, in lower case, numbers as digits, contractions with apostrophes."""
    text = replace_punctuation(_one_line(text))
    words = (_NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def vqa_accuracy(answer: str, human_answers: tuple[str, ...], always_normalise: bool = False) -> float:
    """Return the mean over the people of min(1, the others' answers that match / 3).

    Answers are normalised only if the people's differ, as the official script does, or always, as lmms-eval does.
    """
    answer, people = _one_line(answer), [_one_line(each) for each in human_answers]
    if always_normalise or len(set(people)) > 1:
        answer, people = normalise_answer(answer), [normalise_answer(each) for each in people]
    matches = people.count(answer)
    per_person = [min(1.0, (matches - (each == answer)) / 3) for each in people]
    return sum(per_person) / len(per_person)


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def score_vqa(questions: list[VqaQuestion], answers: Mapping[int, str]) -> VqaScores:
    """Return mean accuracies over the questions; `answers` holds a text for each question id.

    Raises UsageError if a question has no answer.
    """
    require_answers([each.question_id for each in questions], answers)
    overall: list[float] = []
    by_answer: defaultdict[str, list[float]] = defaultdict(list)
    by_question: defaultdict[str, list[float]] = defaultdict(list)
    for each in questions:
        accuracy = vqa_accuracy(answers[each.question_id], each.answers)
        for group in (overall, by_answer[each.answer_type], by_question[each.question_type]):
            group.append(accuracy)
    return VqaScores(_mean(overall), _means(by_answer), _means(by_question))


def _means(groups: Mapping[str, list[float]]) -> dict[str, float]:
    return {name: _mean(values) for name, values in sorted(groups.items())}


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0

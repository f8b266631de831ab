"""SEED-Bench (arXiv 2307.16125): its file, the ranking of answers by likelihood, and the letter of an answer."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from .bad_rows import BadRows, json_array, require_answers

LETTERS = "ABCD"
DIMENSIONS = (
    "Scene Understanding",
    "Instance Identity",
    "Instance Attributes",
    "Instance Location",
    "Instance Counting",
    "Spatial Relation",
    "Instance Interaction",
    "Visual Reasoning",
    "Text Recognition",
    "Action Recognition",
    "Action Prediction",
    "Procedure Understanding",
)
"""Question types 1 to 12; the last three are about videos."""
_CHOICES = ("choice_a", "choice_b", "choice_c", "choice_d")
_FIELDS = ("question_id", "question_type_id", "data_type", "data_id", "question", *_CHOICES, "answer")


@dataclass(frozen=True)
class SeedQuestion:
    """A question with four choices."""

    question_id: str
    question_type_id: int
    data_type: str
    data_id: str
    question: str
    choice_a: str
    choice_b: str
    choice_c: str
    choice_d: str
    answer: str

    @property
    def choices(self) -> tuple[str, ...]:
        """Return the texts of A to D."""
        return self.choice_a, self.choice_b, self.choice_c, self.choice_d


def read_seed(file: Path, bad: BadRows, has_image: Callable[[str], bool] = lambda _: True) -> list[SeedQuestion]:
    """Return the questions about images; those about videos are left out, since no model here takes videos.

    Raises BadRowError for a question without a field, with a type outside 1 to 12, an answer outside A to D, or an
    image that `has_image` does not know.
    """
    questions: list[SeedQuestion] = []
    for line, row in json_array(file, "questions", _FIELDS, bad):
        if row["answer"] not in tuple(LETTERS):
            bad.refuse(file, line, f"has the answer {row['answer']!r}, which is none of A, B, C, D")
        elif row["question_type_id"] not in range(1, len(DIMENSIONS) + 1):
            bad.refuse(file, line, f"has the question type {row['question_type_id']!r}, which is none of 1 to 12")
        elif row["data_type"] == "image" and not has_image(str(row["data_id"])):
            bad.refuse(file, line, f"names the image {row['data_id']!r}, which is not in the folder")
        elif row["data_type"] == "image":
            texts = {name: str(row[name]) for name in _FIELDS if name != "question_type_id"}
            questions.append(SeedQuestion(question_type_id=int(row["question_type_id"]), **texts))
    return questions


def write_seed(file: Path, questions: Iterable[SeedQuestion]) -> None:
    """Write questions as the published file has them."""
    types = {name: place for place, name in enumerate(DIMENSIONS, start=1)}
    body = {"questions": [asdict(each) for each in questions], "question_type": types}
    file.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")


def likeliest_choice(log_probabilities: Sequence[float]) -> str:
    """Return the letter of the answer text with the highest log-probability a token, the official rule."""
    return LETTERS[max(range(len(log_probabilities)), key=lambda place: log_probabilities[place])]


def first_letter(answer: str) -> str:
    """Return the first character, which is what lmms-eval compares: "The answer is B" gives T."""
    return answer.strip()[:1]


def score_seed(questions: list[SeedQuestion], letters: Mapping[str, str]) -> dict[str, float]:
    """Return the share of right letters, by dimension and "overall"; `letters` holds one for each question id.

    Raises UsageError if a question has none.
    """
    require_answers([each.question_id for each in questions], letters)
    rights: defaultdict[str, list[bool]] = defaultdict(list)
    for each in questions:
        right = letters[each.question_id].lower() == each.answer.lower()
        for name in ("overall", DIMENSIONS[each.question_type_id - 1]):
            rights[name].append(right)
    return {name: sum(values) / len(values) for name, values in rights.items()}

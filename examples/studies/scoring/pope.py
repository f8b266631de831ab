"""POPE (arXiv 2305.10355): its files, three ways to read an answer, and its five figures."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from expertflow.errors import UsageError

from .bad_rows import BadRows, is_number, json_lines
from .punctuation import replace_punctuation

Rule = Literal["random", "popular", "adversarial"]
RULES: tuple[Rule, ...] = ("random", "popular", "adversarial")
Answer = Literal["yes", "no", "unknown"]
_OBJECT = re.compile(r"^Is there an? (.+) in the im(?:a|an)ge\?$")


@dataclass(frozen=True)
class PopeQuestion:
    """A line of a POPE file."""

    question_id: int
    image: str
    text: str
    label: Literal["yes", "no"]

    @property
    def object_name(self) -> str:
        """Return the name of the object, empty where the text has another form."""
        found = _OBJECT.match(self.text)
        return found[1] if found else ""


@dataclass(frozen=True)
class PopeScores:
    """Figures of one file, each from 0 to 1; positive is yes. Precision is 0 if no answer is yes."""

    questions: int
    accuracy: float
    precision: float
    recall: float
    f1: float
    yes_share: float


def pope_file_name(rule: Rule, prefix: str = "coco") -> str:
    """Return the name of a published file."""
    return f"{prefix}_pope_{rule}.json"


def read_pope(file: Path, bad: BadRows, has_image: Callable[[str], bool] | None = None) -> list[PopeQuestion]:
    """Return the questions of a file with one JSON object a line.

    Raises BadRowError for a line without a field, with a label other than yes and no, or whose image `has_image` does
    not know; UsageError for an empty file.
    """
    questions: list[PopeQuestion] = []
    for line, row in json_lines(file, ("question_id", "image", "text", "label"), bad):
        if row["label"] not in ("yes", "no"):
            bad.refuse(file, line, f"has the label {row['label']!r}, neither yes nor no")
            continue
        if not is_number(row["question_id"]):
            bad.refuse(file, line, f"has the id {row['question_id']!r}, which is no number")
            continue
        if has_image is not None and not has_image(str(row["image"])):
            bad.refuse(file, line, f"names the image {row['image']!r}, which is not in the folder")
            continue
        questions.append(PopeQuestion(int(row["question_id"]), str(row["image"]), str(row["text"]), row["label"]))
    if not questions:
        raise UsageError("holds no question", str(file), "Name a POPE file")
    return questions


def write_pope(file: Path, questions: Iterable[PopeQuestion]) -> None:
    """Write questions as the published files have them."""
    lines = (
        {"question_id": each.question_id, "image": each.image, "text": each.text, "label": each.label}
        for each in questions
    )
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def read_original(text: str) -> Answer:
    """Read an answer as the authors' script does: "no" if No, not or no is a word of the first sentence, else yes."""
    words = text.split(".")[0].replace(",", "").split(" ")
    return "no" if any(word in words for word in ("No", "not", "no")) else "yes"


def read_exact(text: str) -> Answer:
    """Read an answer as lmms-eval does: only the bare words yes and no count."""
    answer = text.lower().strip()
    return answer if answer in ("yes", "no") else "unknown"


def read_words(text: str) -> Answer:
    """Read an answer as VLMEvalKit does: yes or no among the words, but not both."""
    words = replace_punctuation(text.lower(), keep_decimal_point=True).split()
    if ("yes" in words) == ("no" in words):
        return "unknown"
    return "yes" if "yes" in words else "no"


READINGS: dict[str, Callable[[str], Answer]] = {"original": read_original, "exact": read_exact, "words": read_words}


def outcome_counts(labels: Sequence[str], answers: Sequence[str], reading: str) -> np.ndarray:
    """Return int64 [questions, 6]: true yes, false yes, missed yes, said yes, right, and one.

    An unknown answer is wrong. It is a missed yes except for the exact reading, whose recall leaves it out.
    """
    rows = [_outcome(label, answer, reading) for label, answer in zip(labels, answers, strict=True)]
    return np.array(rows, dtype=np.int64).reshape(-1, 6)


def _outcome(label: str, answer: str, reading: str) -> tuple[bool, ...]:
    said_yes = answer == "yes"
    missed = label == "yes" and (answer == "no" or (answer == "unknown" and reading != "exact"))
    return label == "yes" and said_yes, label == "no" and said_yes, missed, said_yes, label == answer, True


def scores_of(outcomes: np.ndarray) -> PopeScores:
    """Return the figures of `outcome_counts`."""
    true_yes, false_yes, missed, said_yes, right, questions = outcomes.sum(0).tolist()
    precision = _ratio(true_yes, true_yes + false_yes)
    recall = _ratio(true_yes, true_yes + missed)
    f1 = _ratio(2 * precision * recall, precision + recall)
    return PopeScores(questions, _ratio(right, questions), precision, recall, f1, _ratio(said_yes, questions))


def score_pope(questions: Sequence[PopeQuestion], answers: Sequence[str], reading: str = "original") -> PopeScores:
    """Return the figures of the answers' texts under one reading.

    Raises UsageError if there are fewer or more answers than questions.
    """
    require_as_many(len(questions), len(answers))
    read = [READINGS[reading](answer) for answer in answers]
    return scores_of(outcome_counts([each.label for each in questions], read, reading))


def require_as_many(questions: int, answers: int, where: str = "answers") -> None:
    """Raise UsageError unless each question has one answer."""
    if questions != answers:
        what = f"holds {answers} answers to {questions} questions"
        raise UsageError(what, where, "Answer every question once, in their order")


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0

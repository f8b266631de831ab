"""Figures of a cell's answers: each file under each reading, intervals by image, and answers that differ."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..resumable import Row
from ..scoring.bootstrap import image_intervals, mcnemar_probability
from ..scoring.pope import READINGS, RULES, outcome_counts, scores_of
from .questions import AskedQuestion

REFERENCE_BUDGET = "100%"


@dataclass(frozen=True)
class SetFacts:
    """Facts of a set that its files do not hold."""

    unseen_images: set[str]
    """Images with objects that training never showed together."""


def quality_of(questions: list[AskedQuestion], texts: list[str], facts: SetFacts) -> dict[str, Any]:
    """Return figures by file ("random" …, "all", "unseen pairs"), each with the three readings and their intervals."""
    places = {rule: [place for place, each in enumerate(questions) if each.rule == rule] for rule in RULES}
    everything = list(range(len(questions)))
    unseen = [place for place in everything if questions[place].question.image in facts.unseen_images]
    groups = {**places, "all": everything, "unseen pairs": unseen}
    return {
        name: _figures([questions[place] for place in group], [texts[place] for place in group])
        for name, group in groups.items()
        if group
    }


def _figures(questions: list[AskedQuestion], texts: list[str]) -> dict[str, Any]:
    labels = [each.question.label for each in questions]
    images = [each.question.image for each in questions]
    by_reading: dict[str, Any] = {}
    for reading, read in READINGS.items():
        outcomes = outcome_counts(labels, [read(text) for text in texts], reading)
        by_reading[reading] = asdict(scores_of(outcomes))
        if reading == "original":
            by_reading["intervals"] = image_intervals(images, outcomes, lambda counts: asdict(scores_of(counts)))
            by_reading["right"] = _packed(outcomes[:, 4])
    return by_reading


def _packed(right: np.ndarray) -> str:
    """Return a text of zeros and ones, one a question, so that cells can be compared in pairs."""
    return "".join(map(str, right.astype(int).tolist()))


def compare_answers(rows: list[Row]) -> None:
    """Add to each row by how many answers it differs from the fully resident model's answers to the same questions.

    `equal_logprobs`: the log-probabilities of all first tokens have the same bits. `mcnemar`: the probability that two
    systems of equal accuracy differ as much.
    """
    for row in rows:
        reference = _reference(rows, row)
        if reference is None or reference is row:
            continue
        pairs = list(zip(row["answers"], reference["answers"], strict=True))
        row["differing_answers"] = sum(mine != other for mine, other in pairs)
        if row["logprobs"] and reference["logprobs"]:
            row["equal_logprobs"] = row["logprobs"] == reference["logprobs"]
        mine, other = (each["quality"]["all"]["right"] for each in (row, reference))
        row["mcnemar"] = mcnemar_probability([each == "1" for each in mine], [each == "1" for each in other])


def _reference(rows: list[Row], row: Row) -> Row | None:
    """Return the row of the resident model that answered the same questions: of the same kind, if one has.

    For the control that is the engine, and transformers with all experts (the control without a miss) in its place.
    """
    kinds = ("whole", "exact") if row["kind"] == "control" else (row["kind"],)
    resident = [each for each in rows if each["budget"] == REFERENCE_BUDGET and each["model"] == row["model"]]
    resident = [each for each in resident if len(each["answers"]) == len(row["answers"])]
    engines = [each for each in resident if each["kind"] in kinds and each["system"] == "expertflow"]
    return next(iter([*engines, *(each for each in resident if each["kind"] == "control")]), None)


def without_answers(row: Row) -> Row:
    """Return the row without what it holds for each question."""
    kept = {name: value for name, value in row.items() if name not in ("answers", "logprobs")}
    quality = {
        group: {name: figures for name, figures in readings.items() if name != "right"}
        for group, readings in row["quality"].items()
    }
    return {**kept, "quality": quality}

"""Intervals by image are wider than by question where questions of an image fail together."""

from __future__ import annotations

import numpy as np
import pytest
from expertflow.examples.studies.scoring.bootstrap import image_intervals, mcnemar_probability


def share(counts: np.ndarray) -> dict[str, float]:
    return {"right": float(counts[:, 0].sum() / counts[:, 1].sum())}


def test_images_not_questions_are_drawn() -> None:
    right = np.repeat(np.arange(60) % 2, 10)
    outcomes = np.stack([right, np.ones_like(right)], axis=1)
    by_image = image_intervals([str(place // 10) for place in range(600)], outcomes, share)["right"]
    by_question = image_intervals([str(place) for place in range(600)], outcomes, share)["right"]
    assert by_image[0] < by_question[0] < 0.5 < by_question[1] < by_image[1]
    assert by_image[1] - by_image[0] == pytest.approx(4 * np.sqrt(0.25 / 60), rel=0.15)


def test_mcnemar_counts_only_what_differs() -> None:
    same = [True] * 50
    assert mcnemar_probability(same, same) == 1.0
    assert mcnemar_probability([True] * 10 + same, [False] * 10 + same) == pytest.approx(2 / 2**10)

"""Accuracy of a model on the three sets, by the published scorers."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from ..scoring.mmbench import score_mmbench
from ..scoring.seed_bench import likeliest_choice, score_seed
from ..scoring.vqa import score_vqa
from .answering import Answerer
from .question_sets import QuestionSets, vqa_image


def measure_quality(answerer: Answerer, sets: QuestionSets) -> dict[str, Any]:
    """Return the scores of the three sets and their mean."""
    vqa, mmbench, seed = _vqa(answerer, sets), _mmbench(answerer, sets), _seed(answerer, sets)
    mean = (vqa["overall"] + mmbench["circular"] + seed["overall"]) / 3
    return {"vqa": vqa, "mmbench": mmbench, "seed": seed, "mean": mean}


def _vqa(answerer: Answerer, sets: QuestionSets) -> dict[str, Any]:
    prompts = [each.text for each in sets.vqa]
    words = answerer.words(prompts, [vqa_image(sets.images, each) for each in sets.vqa])
    answers = {each.question_id: word.lower() for each, word in zip(sets.vqa, words, strict=True)}
    return asdict(score_vqa(sets.vqa, answers))


def _mmbench(answerer: Answerer, sets: QuestionSets) -> dict[str, Any]:
    words = answerer.words([each.prompt for each in sets.mmbench], [each.image for each in sets.mmbench])
    return asdict(score_mmbench(sets.mmbench, dict(zip([each.index for each in sets.mmbench], words, strict=True))))


def _seed(answerer: Answerer, sets: QuestionSets) -> dict[str, Any]:
    """Rank the four texts by likelihood, the official rule."""
    prompts = [each.question for each in sets.seed]
    images = [sets.images / each.data_id for each in sets.seed]
    scores = answerer.log_probabilities(prompts, images, [each.choices for each in sets.seed])
    letters = {each.question_id: likeliest_choice(row) for each, row in zip(sets.seed, scores, strict=True)}
    return score_seed(sets.seed, letters)

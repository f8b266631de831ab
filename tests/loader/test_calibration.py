"""Forecasts and hints are believed as far as they proved right, layer by layer."""

from __future__ import annotations

import numpy as np
from expertflow.workers.loader.calibration import ACCURATE, LEVELS, UNKNOWN, Calibration, levels

EXPERTS = 16
NOTHING = np.full(EXPERTS, UNKNOWN)


def test_scores_become_levels() -> None:
    assert levels(np.array([0, 15, 16, 127, 128, 255], np.uint8)).tolist() == [0, 0, 1, 4, 4, LEVELS - 1]


def test_before_anything_is_known_a_source_is_taken_at_its_word() -> None:
    """A hint goes before a plan; without either nothing is likely."""
    fresh = Calibration(1)
    assert fresh.chances(0, np.array(8)) > 0.9 and fresh.chances(0, np.array(0)) < 0.1
    assert fresh.chances(0, np.array(0), 8) > 0.9 and fresh.chances(0, np.array(8), 0) < 0.1
    assert fresh.chances(0, np.array(UNKNOWN)) == 0


def test_a_liar_is_worth_no_more_than_chance() -> None:
    rng = np.random.default_rng(0)
    calibration = Calibration(2)
    for _ in range(400):
        plan = rng.integers(0, LEVELS, EXPERTS)
        calibration.learn(0, plan, NOTHING, rng.random(EXPERTS) < 0.25)
    assert np.allclose(calibration.chances(0, np.arange(LEVELS)), 0.25, atol=0.08)
    assert calibration.chances(1, np.array(8)) > 0.9, "the other layer was not judged"
    assert calibration.accuracy < 0.5


def test_plan_and_hint_are_merged_by_what_they_are_worth() -> None:
    """The hint is right four times in five, the plan adds what it knows."""
    rng = np.random.default_rng(1)
    calibration = Calibration(1)
    for _ in range(600):
        used = rng.random(EXPERTS) < 0.3
        hint = np.where(rng.random(EXPERTS) < 0.8, used, ~used) * (LEVELS - 1)
        plan = np.where(rng.random(EXPERTS) < 0.7, used, ~used) * (LEVELS - 1)
        calibration.learn(0, plan, hint, used)
    both, hint_only = calibration.chances(0, np.array(8), 8), calibration.chances(0, np.array(0), 8)
    plan_only, neither = calibration.chances(0, np.array(8), 0), calibration.chances(0, np.array(0), 0)
    assert both > hint_only > plan_only > neither
    expected = 0.3 * 0.8 * 0.7 / (0.3 * 0.8 * 0.7 + 0.7 * 0.2 * 0.3)
    assert abs(both - expected) < 0.06


def test_what_was_true_long_ago_fades() -> None:
    calibration = Calibration(1)
    sure = np.full(EXPERTS, 8)
    for used in [True] * 2000 + [False] * 2000:
        calibration.learn(0, sure, NOTHING, np.full(EXPERTS, used))
    assert calibration.chances(0, np.array(8)) < 0.05


def test_accuracy_is_f1_of_what_was_called_likely() -> None:
    calibration = Calibration(1)
    used = np.arange(EXPERTS) < 4
    for _ in range(300):
        calibration.learn(0, np.where(used, 8, 0), NOTHING, used)
    assert calibration.accuracy > 0.99 > ACCURATE
    for _ in range(300):
        calibration.learn(0, np.where(used, 8, 0), NOTHING, np.arange(EXPERTS) >= 12)
    assert calibration.accuracy < ACCURATE


def test_literal_sources_keep_their_word_however_wrong() -> None:
    calibration = Calibration(1, uncalibrated=True)
    sure = np.full(EXPERTS, 8)
    for _ in range(300):
        calibration.learn(0, sure, NOTHING, np.zeros(EXPERTS, bool))
    assert calibration.chances(0, np.array(8)) > 0.9 and calibration.accuracy == 0

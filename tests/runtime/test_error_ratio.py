"""A fault is told apart from a near tie of a router that fell the other way, whichever side it hit."""

from __future__ import annotations

import numpy as np
import pytest
from expertflow.runtime.verify.error_ratio import LIMIT, compare_errors

SEQUENCES, POSITIONS, TIE = 8, 32, 80.0
"""What one position costs whose one expert is another than in float32."""


def usual(seed: int, sequences: int = SEQUENCES) -> list[np.ndarray]:
    """Rounding errors as two implementations of one model have them: alike, not the same."""
    chance = np.random.default_rng(seed)
    return [1e-3 * chance.lognormal(0, 0.15, POSITIONS) for _ in range(sequences)]


def test_alike_errors_are_one_of_the_other():
    ratio = compare_errors(usual(1), usual(2))
    assert ratio.holds and not ratio.by_chance
    assert ratio.mean == pytest.approx(1, abs=0.1) and ratio.median == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("sequences", [1, 2, SEQUENCES])
def test_one_near_tie_that_falls_the_other_way_is_chance(sequences: int):
    """HunYuan with one expert a token was refused for it: 1.35 times in the mean, 1.00 in the median."""
    ours = usual(1, sequences)
    ours[0][10] *= TIE
    ratio = compare_errors(ours, usual(2, sequences))
    assert ratio.mean > LIMIT
    assert ratio.holds and ratio.by_chance


def test_a_tie_that_spoils_what_follows_in_its_sequence_is_chance():
    ours = usual(1)
    ours[3][10:] *= 10
    ratio = compare_errors(ours, usual(2))
    assert ratio.mean > 1.5
    assert ratio.holds and ratio.by_chance


def test_an_error_above_the_limit_everywhere_is_a_fault():
    """Though no position stands out: sums in bfloat16, say."""
    assert not compare_errors([1.4 * errors for errors in usual(1)], usual(2)).holds


def test_ties_of_theirs_do_not_hide_it():
    """By the mean alone they would."""
    theirs = usual(2)
    for errors in theirs:
        errors[5] *= TIE
    ratio = compare_errors([1.4 * errors for errors in usual(1)], theirs)
    assert ratio.mean < 1
    assert not ratio.holds


def test_one_wrong_position_in_every_sequence_is_a_fault():
    """As the first token after a row was moved: too many to be ties."""
    ours = usual(1)
    for errors in ours:
        errors[4] *= TIE
    ratio = compare_errors(ours, usual(2))
    assert ratio.median < LIMIT
    assert not ratio.holds


def test_every_fourth_sequence_wrong_is_a_fault():
    """As one row of four in every batch."""
    ours = [errors * (10 if number % 4 == 0 else 1) for number, errors in enumerate(usual(1, 32))]
    assert not compare_errors(ours, usual(2, 32)).holds


def test_what_is_no_number_holds_nothing():
    ours = usual(1)
    ours[2][7] = np.nan
    assert not compare_errors(ours, usual(2)).holds


@pytest.mark.parametrize(("ours", "theirs", "holds"), [(0.0, 0.0, True), (0.0, 1e-3, True), (1e-3, 0.0, False)])
def test_no_error_at_all_is_as_good_as_it_gets(ours: float, theirs: float, holds: bool):
    assert compare_errors([np.full(4, ours)], [np.full(4, theirs)]).holds == holds

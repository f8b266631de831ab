"""The token table of the path predictor goes on counting, within its memory."""

from __future__ import annotations

import numpy as np
import pytest
from expertflow.workers.predictor.path import lexicon as module
from expertflow.workers.predictor.path.file import TokenCounts
from expertflow.workers.predictor.path.lexicon import Lexicon

WIDTH = 4


def table(*tokens: object) -> TokenCounts:
    """Every token was seen twice and always used expert 0."""
    counts = np.zeros((len(tokens), WIDTH), np.uint8)
    counts[:, 0] = 2
    return TokenCounts(counts, np.full(len(tokens), 2, np.uint8), np.array(tokens))


def hot(expert: int) -> np.ndarray:
    return np.eye(WIDTH, dtype=np.float32)[[expert]]


def test_trained_tokens_go_on_counting() -> None:
    lexicon = Lexicon(table(7, 9), 0, None)
    lexicon.count(np.array([9]), hot(3))
    counts, seen, grams = lexicon.look_up(np.array([7, 9, 5]))
    assert counts.tolist() == [[2, 0, 0, 0], [2, 0, 0, 1], [0, 0, 0, 0]]
    assert seen.tolist() == [2, 3, 0]
    assert grams is None


def test_new_tokens_are_counted_and_the_first_of_them_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GROWTH_BYTES", 2 * WIDTH)
    lexicon = Lexicon(table(7), 0, None)
    for token in (1, 2, 3):
        lexicon.count(np.array([token]), hot(1))
    counts, seen, _ = lexicon.look_up(np.array([1, 2, 3, 7]))
    assert seen.tolist() == [0, 1, 1, 2]
    assert counts[:, 1].tolist() == [0, 1, 1, 0]
    lexicon.count(np.array([1]), hot(2))
    assert lexicon.look_up(np.array([1, 2]))[0].tolist() == [[0, 0, 1, 0], [0, 0, 0, 0]]


def test_the_same_token_twice_in_a_step_counts_twice() -> None:
    lexicon = Lexicon(table(7), 0, None)
    lexicon.count(np.array([5, 5]), np.concatenate([hot(1), hot(2)]))
    assert lexicon.look_up(np.array([5]))[1].tolist() == [2]


def test_full_counts_fade() -> None:
    lexicon = Lexicon(table(7), 0, None)
    for _ in range(300):
        lexicon.count(np.array([7]), hot(1))
    counts, seen, _ = lexicon.look_up(np.array([7]))
    assert counts[0].max() <= seen[0] <= 255
    assert counts[0, 1] / seen[0] > 0.98


def test_what_training_saw_often_is_settled() -> None:
    """Fresh counts would only add noise to it."""
    known = table(7)
    known.seen[0] = 255
    lexicon = Lexicon(known, 0, None)
    lexicon.count(np.array([7]), hot(3))
    assert lexicon.look_up(np.array([7]))[0].tolist() == known.counts.tolist()


def test_tokens_of_a_table_of_strings_are_found_by_their_string() -> None:
    lexicon = Lexicon(table("Ġthe", "of"), 16, {4: "of"}.get)
    counts, seen, grams = lexicon.look_up(np.array([4, 5]))
    assert seen.tolist() == [2, 0]
    assert grams is not None and (grams[0] != 16).any() and (grams[1] == 16).all()

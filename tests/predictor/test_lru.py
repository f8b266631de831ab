"""Bounded memories against a plain list of what was used last."""

from __future__ import annotations

import random

import pytest
from expertflow.workers.predictor.base.lru import LruDict, LruLines


@pytest.mark.parametrize("seed", range(5))
def test_a_dictionary_keeps_what_was_set_last(seed: int):
    chance, kept = random.Random(seed), LruDict[int](4)
    newest: list[int] = []
    for value in range(200):
        key = chance.randrange(8)
        kept[key] = value
        newest = [key, *(each for each in newest if each != key)][:4]
        kept.get(chance.randrange(8))  # reading changes no order
        assert len(kept) == len(newest)
        assert [kept.get(each) is not None for each in range(8)] == [each in newest for each in range(8)]
        assert list(kept.newest_first())[0] == value == kept.get(key)


@pytest.mark.parametrize("seed", range(5))
def test_every_key_has_a_line_of_its_own_and_the_oldest_loses_it(seed: int):
    chance, lines = random.Random(seed), LruLines(4)
    newest: list[int] = []
    for _ in range(200):
        key = chance.randrange(8)
        before = lines.find(key)
        line, fresh = lines.open(key)
        assert fresh == (key not in newest) == (before < 0)
        assert before in (-1, line)
        newest = [key, *(each for each in newest if each != key)][:4]
        own = [lines.find(each) for each in newest]
        assert len(set(own)) == len(own) and set(own) <= set(range(4))
        assert all(lines.find(each) < 0 for each in range(8) if each not in newest)

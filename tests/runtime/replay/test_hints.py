"""Emulated hints, and what a replay does with hints."""

from __future__ import annotations

import numpy as np
import pytest
from expertflow.errors import UsageError
from expertflow.runtime.replay.atomic import Sharing, make_cache, replay
from expertflow.runtime.replay.hints import EmulatedHints, Quality
from expertflow.runtime.replay.steps import batch_steps, uses_of
from expertflow.tests.runtime.replay.made import random_trace, uses_of_sets
from expertflow.workers.loader.policies import make_policy

SHARINGS = pytest.mark.parametrize("sharing", ["pool", "layer"])


class Told:
    """Hints as given: by step."""

    def __init__(self, *hinted: list[int]) -> None:
        self._hinted = hinted

    def of(self, step: int) -> np.ndarray:
        return np.array(self._hinted[step], dtype=np.int64)


def test_recall_and_precision_come_out_as_asked_for() -> None:
    trace = random_trace(0, [400, 400], layers=4, experts=32, top_k=4)
    steps = batch_steps(trace, 1)
    measured = EmulatedHints(trace, steps, Quality(recall=0.8, precision=0.7)).measure(uses_of(trace, steps))
    assert measured.recall == pytest.approx(0.8, abs=0.01)
    assert measured.precision == pytest.approx(0.7, abs=0.01)


def test_perfect_hints_are_the_routes() -> None:
    trace = random_trace(0, [20, 20])
    steps = batch_steps(trace, 2)
    hints, uses = EmulatedHints(trace, steps, Quality(recall=1.0, precision=1.0)), uses_of(trace, steps)
    for step in range(uses.steps):
        np.testing.assert_array_equal(hints.of(step), uses.of(step))


def test_false_hints_are_the_likely_experts_of_the_token() -> None:
    """What a token never uses is hinted far less often than what it uses at other times."""
    trace = random_trace(5, [2000], layers=1, experts=16, top_k=2)
    steps = batch_steps(trace, 1)
    hints, uses = EmulatedHints(trace, steps, Quality(recall=0.9, precision=0.6)), uses_of(trace, steps)
    counts = np.zeros((10, 16))
    np.add.at(counts, (trace.token_ids[:, None], trace.routes[:, 0]), 1)
    rank = np.argsort(np.argsort(-counts, axis=1), axis=1)
    false = [
        rank[token, key]
        for step, token in enumerate(trace.token_ids)
        for key in np.setdiff1d(hints.of(step), uses.of(step))
    ]
    assert np.mean(np.array(false) < 8) > 0.8


def test_the_seed_decides() -> None:
    trace = random_trace(0, [30])
    steps, quality = batch_steps(trace, 1), Quality(recall=0.5, precision=0.5)
    one, same, other = (EmulatedHints(trace, steps, quality, seed) for seed in (1, 1, 2))
    assert all(np.array_equal(one.of(step), same.of(step)) for step in range(30))
    assert not all(np.array_equal(one.of(step), other.of(step)) for step in range(30))


def test_a_hint_names_the_keys_of_one_layer() -> None:
    trace = random_trace(0, [3], layers=2, experts=8)
    hints = EmulatedHints(trace, batch_steps(trace, 1), Quality(recall=1.0, precision=0.5))
    for step in range(3):
        scores = [np.frombuffer(hints.scores(step, layer), np.uint8) for layer in range(2)]
        assert np.flatnonzero(np.concatenate(scores)).tolist() == hints.of(step).tolist()
        assert set(np.concatenate(scores).tolist()) == {0, 255}


@pytest.mark.parametrize("quality", [(0.0, 0.5), (0.5, 1.5)])
def test_impossible_qualities_are_refused(quality: tuple[float, float]) -> None:
    with pytest.raises(UsageError, match="above 0 and at most 1"):
        Quality(recall=quality[0], precision=quality[1])


@SHARINGS
def test_what_is_hinted_is_there_and_counted(sharing: Sharing) -> None:
    """Step 0 finds nothing; step 1 was told of 1 (right) and 3 (wrong), and still misses 2."""
    uses = uses_of_sets([[{0}], [{1, 2}]], experts=4)
    outcome = replay(uses, make_policy("lru", 1, 4, 1), make_cache(sharing, uses, 4), hints=Told([], [1, 3]))
    assert (outcome.hits, outcome.loads, outcome.prefetches, outcome.useful, outcome.wasted) == (1, 4, 2, 1, 1)


@SHARINGS
def test_what_is_hinted_makes_no_room_for_other_hints(sharing: Sharing) -> None:
    """0 is resident, old and hinted; 1 was used last and goes. 2 comes for it; there is no room for 3."""
    uses = uses_of_sets([[{0}], [{1}], [{0, 2, 3}]], experts=4)
    outcome = replay(uses, make_policy("lru", 1, 4, 1), make_cache(sharing, uses, 2), hints=Told([], [], [0, 2, 3]))
    assert (outcome.hits, outcome.prefetches, outcome.useful) == (2, 1, 1)


@SHARINGS
def test_the_link_carries_so_many_hinted_experts_a_layer(sharing: Sharing) -> None:
    uses = uses_of_sets([[{0, 1, 2}, {0, 1, 2}]] * 2, experts=8)
    told = Told([0, 1, 2, 8, 9, 10], [])
    cache = make_cache(sharing, uses, 16)
    outcome = replay(uses, make_policy("lru", 2, 8, 3), cache, hints=told, loads_per_layer=1.5)
    assert outcome.prefetches == 1 + 2  # 1.5 a layer: one for the first, two for the second
    assert outcome.loads == 6


def test_a_hinted_expert_of_the_next_layer_makes_no_room_for_a_miss() -> None:
    """Layer 0 misses expert 1; of the two that are there, that of layer 1 is the older one and would go, but is
    hinted."""
    uses = uses_of_sets([[set(), {0}], [{0}, set()], [{1}, {0}]], experts=2)
    told, untold = Told([], [], [2]), Told([], [], [])
    outcomes = [replay(uses, make_policy("lru", 2, 2, 1), make_cache("pool", uses, 2), hints=h) for h in (told, untold)]
    assert [outcome.hits for outcome in outcomes] == [1, 0]

"""The replay of the paper's comparison: what an oracle says is true, and each loader is measured against Cache-MoE."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from expertflow.benchmarks.paper_study.foresight import CERTAIN, ForeseenSteps, ForeseenUses
from expertflow.benchmarks.paper_study.replaying import Setting
from expertflow.runtime.replay.future import Belady
from expertflow.tests.runtime.replay.made import random_trace
from expertflow.workers.traces.trace import write_npz


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    """Six sequences, two side by side, with half of the 24 experts in slots."""
    write_npz(random_trace(1, [20] * 6), tmp_path / "trace.npz")
    return Setting(tmp_path / "trace.npz", tmp_path, 2, 0.5, 0.5, 0)


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_foreseen_steps_are_true_and_come_once(setting: Setting, ahead: int) -> None:
    program, seen = setting.source.program, []
    source = ForeseenSteps(program, ahead)
    for step in range(program.steps):
        for delay_ns, prediction in source.begin(step):
            seen.append(prediction.step)
            scores = np.frombuffer(prediction.scores, np.uint8).reshape(program.layers, program.experts)
            used = {
                (layer, expert)
                for layer in range(program.layers)
                for expert in program.experts_of(prediction.step, layer)
            }
            assert delay_ns == 0 and {(int(a), int(b)) for a, b in np.argwhere(scores == CERTAIN)} == used
        assert seen[-1] == min(step + ahead, program.steps - 1)
    assert seen == list(range(program.steps))


def test_uses_reported_at_the_end_of_a_step_are_past(setting: Setting) -> None:
    """Else an expert that was hit in the last layer would be kept for a use that is over."""
    uses = setting.source.uses
    late, told = ForeseenUses(uses), Belady(uses)
    for step in range(3):
        late.used(uses.of(step), step)
        told.touched(uses.of(step), step)
    now = 3 * uses.layers - 1
    np.testing.assert_array_equal(late.worth(now, now), told.worth(now, now))


def test_an_oracle_loads_less_and_waits_less_than_a_cache(setting: Setting) -> None:
    cache = setting.row("lru", None, by_layer=True)
    oracle = setting.row("popularity", setting.foreseen(1))
    assert oracle["step_ms"] < cache["step_ms"] and oracle["hit_ratio"] > cache["hit_ratio"]
    assert setting.belady_loads() <= min(cache["loads_a_step"], oracle["loads_a_step"])
    assert min(cache["step_of_bound"], oracle["step_of_bound"]) >= 1


def test_a_cache_that_copies_victims_back_waits_longer_for_as_many_loads(setting: Setting) -> None:
    once, twice = (setting.row("lru", None, by_layer=True, copies=copies) for copies in (1, 2))
    assert twice["loads_a_step"] == once["loads_a_step"] and twice["step_ms"] > once["step_ms"]
    assert twice["step_of_bound"] >= 1


def test_a_ring_of_layers_loads_experts_that_no_token_needs(setting: Setting) -> None:
    ring = setting.row("ring", setting.everything(), whole_layers=True, rank_victims="always", uncalibrated=True)
    needed = setting.row("lru", None)
    assert ring["loads_a_step"] > float(setting.source.unions.sum(axis=-1).mean()) >= needed["loads_a_step"]
    assert ring["step_of_bound"] >= 1

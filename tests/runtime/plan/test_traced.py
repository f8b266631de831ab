"""Routing from a trace: uniform routing has a reuse of one, and the forecast misses what the replay missed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from expertflow.errors import UsageError
from expertflow.runtime.plan.forecast import Rates, distinct_experts, forecast_step
from expertflow.runtime.plan.traced import FOLDER, find_trace, traced_routing
from expertflow.tests.runtime.plan.made import made_sizes, made_table
from expertflow.workers.traces.trace import Trace, write_npz

LAYERS, EXPERTS, TOP_K = 4, 16, 2
SIZES = made_sizes(LAYERS, EXPERTS, TOP_K)


def save_trace(file: Path, skew: float, tokens: int = 3000) -> Path:
    """Eight sequences whose tokens draw experts at random, the first ones oftener by `skew`."""
    rng = np.random.default_rng(0)
    weights = np.arange(1, EXPERTS + 1) ** -skew
    noise = rng.gumbel(size=(tokens, LAYERS, EXPERTS)) + np.log(weights)
    experts = np.argsort(-noise, axis=-1)[..., :TOP_K].astype(np.uint16)
    offsets = np.arange(0, tokens + 1, tokens // 8)
    trace = Trace(routes=experts, token_ids=np.zeros(tokens, np.int64), offsets=offsets, expert_count=EXPERTS)
    write_npz(trace, file)
    return file


@pytest.fixture(scope="module")
def uniform(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_trace(tmp_path_factory.mktemp("uniform") / "trace.npz", 0.0)


def test_uniform_routing_has_no_reuse_and_skewed_routing_has(uniform: Path, tmp_path: Path) -> None:
    skewed = save_trace(tmp_path / "skewed.npz", 1.5)
    even, uneven = (traced_routing(trace, SIZES, 16, 1) for trace in (uniform, skewed))
    assert even.reuse == pytest.approx(1.0, abs=0.15) and uneven.reuse > 1.5
    assert even.distinct == pytest.approx(1.0, abs=0.01)
    assert traced_routing(skewed, SIZES, 16, 8).distinct < 0.9, "rows share the experts that are used often"


def test_more_slots_of_a_trace_are_not_slower(uniform: Path) -> None:
    rates = Rates(kernels=made_table(), read_bytes_per_s=1e9)
    steps = [
        forecast_step(SIZES, slots, 2, rates, traced_routing(uniform, SIZES, slots, 2)) for slots in (8, 16, 32, 64)
    ]
    times = [step.step_s for step in steps]
    assert times == sorted(times, reverse=True) and steps[-1].misses == 0
    used = LAYERS * distinct_experts(SIZES, 2, traced_routing(uniform, SIZES, 16, 2))
    assert 0.6 * used < steps[1].misses < 0.9 * used


def test_a_trace_of_another_model_is_refused(uniform: Path) -> None:
    with pytest.raises(UsageError, match="4 layers of 16 experts, not 16 of 64"):
        traced_routing(uniform, made_sizes(), 16, 1)


def test_a_trace_in_the_models_folder_is_found_and_a_given_one_comes_first(tmp_path: Path) -> None:
    assert find_trace(None, str(tmp_path)) is None
    (tmp_path / FOLDER).mkdir()
    assert find_trace(None, str(tmp_path)) == tmp_path / FOLDER
    assert find_trace(tmp_path / "other", str(tmp_path)) == tmp_path / "other"

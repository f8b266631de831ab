"""Both cores of the residency protocol together, under random delays, deaths and lies (I2, I3, R1-R9)."""

from __future__ import annotations

from dataclasses import replace

import pytest
from expertflow.ipc.messages import Plan
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from expertflow.tests.residency.histories import make_holdings, make_ledger, play, programs, shapes, truth
from expertflow.tests.residency.world import Shape, World

HISTORIES = st.binary(max_size=400)
QUICK = settings(max_examples=1500, deadline=None, suppress_health_check=list(HealthCheck))
LONG = settings(QUICK, max_examples=25_000)


@st.composite
def worlds(draw: st.DrawFn) -> World:
    shape = draw(shapes())
    return World(shape, draw(programs(shape)), make_ledger, make_holdings)


@QUICK
@given(worlds(), HISTORIES)
def test_any_history_ends_with_all_work_done(world: World, history: bytes) -> None:
    """Breaks with a torn slot, a stale expert, a lost slot, a double transfer, or when nothing can go on."""
    play(world, history)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@LONG
@given(worlds(), st.binary(max_size=1500))
def test_any_long_history_ends_with_all_work_done(world: World, history: bytes) -> None:
    play(world, history)

"""Slots are seen as tensors in place: the right bytes, no copy, alike in every slot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from expertflow.tests.loader.arenas import fill, make_arena
from expertflow.tests.loader.layouts import Place, make_survey, write_random
from expertflow.workers.checkpoint.survey import Survey
from expertflow.workers.compute.experts.slots import SlotViews

EXPERTS: list[list[Place]] = [[(0, 96), (0, 3000)], [(0, 101), (0, 3333)], [(0, 4096), (0, 0)]]
"""At offsets that suit the type, at odd ones, and at a block."""


@pytest.fixture(params=[1, 4096])
def survey(request: pytest.FixtureRequest, tmp_path: Path) -> Survey:
    return make_survey(write_random(tmp_path, 9000), [[600], [50]], EXPERTS, request.param)


def values(survey: Survey, expert: int, tensor: int) -> torch.Tensor:
    """As bits: random bytes may be NaNs."""
    _, offset = survey.place_table()[0, expert, tensor]
    data = np.fromfile(survey.files[0], np.int16, survey.tensors[tensor].count_bytes // 2, offset=int(offset))
    return torch.from_numpy(data)


@pytest.mark.parametrize("expert", [0, 1, 2])
def test_views_show_the_tensors_of_the_expert(survey: Survey, expert: int):
    """Odd offsets too: such a tensor lies aligned in its slot, as torch asks for."""
    memory = make_arena(3 * survey.stride_bytes)
    fill(survey, {1: (0, expert)}, memory)
    weights = SlotViews(memory, survey).weights(1, 0, expert)
    assert list(weights) == ["tensor0", "tensor1"]
    for number, view in enumerate(weights.values()):
        assert view.dtype == torch.bfloat16
        assert view.shape == tuple(survey.tensors[number].shape)
        assert torch.equal(view.view(torch.int16), values(survey, expert, number))


def test_views_are_no_copies(survey: Survey):
    """A copy would be stale as soon as the slot is filled again, and would double the memory."""
    memory = make_arena(survey.stride_bytes)
    view = SlotViews(memory, survey).weights(0, 0, 0)["tensor0"]
    memory[:] = 0
    assert (view == 0).all()


def test_experts_that_lie_alike_share_the_views_of_a_slot(tmp_path: Path):
    experts: list[list[Place]] = [[(0, 96), (0, 3000)], [(0, 8288), (0, 11192)]]
    alike = make_survey(write_random(tmp_path, 20000), [[600], [50]], experts, 4096)
    views = SlotViews(make_arena(2 * alike.stride_bytes), alike)
    first = views.weights(0, 0, 0)
    assert views.weights(0, 0, 1) is first
    assert views.weights(1, 0, 1) is not first


def test_a_slot_shows_the_expert_that_it_is_asked_for(survey: Survey):
    """Experts lie at different offsets: the views of the last one would be shifted."""
    memory = make_arena(2 * survey.stride_bytes)
    views = SlotViews(memory, survey)
    for slot, expert in [(0, 0), (1, 0), (0, 2), (0, 0), (1, 1)]:
        fill(survey, {slot: (0, expert)}, memory)
        assert torch.equal(views.weights(slot, 0, expert)["tensor0"].view(torch.int16), values(survey, expert, 0))


def test_views_of_a_hit_are_made_once_and_those_of_the_past_are_forgotten(survey: Survey):
    """Keeping them all would leak a thousand bytes a load."""
    views = SlotViews(make_arena(2 * survey.stride_bytes), survey)
    first = views.weights(0, 0, 0)
    assert views.weights(0, 0, 0) is first
    for slot in (0, 1):
        for expert in (0, 1, 2):
            views.weights(slot, 0, expert)
    assert len(views._views) == 2


def test_an_expert_has_the_same_alignment_in_every_slot(survey: Survey):
    """Kernels may choose their code by alignment: the bits of a product must not depend on the slot (I1a)."""
    views = SlotViews(make_arena(4 * survey.stride_bytes), survey)
    for expert in range(survey.experts):
        for name in ("tensor0", "tensor1"):
            assert len({views.weights(slot, 0, expert)[name].data_ptr() % 64 for slot in range(4)}) == 1


def test_views_outlive_the_names_of_their_memory(survey: Survey):
    """Unmapping memory under a tensor ends in a crash."""
    memory = make_arena(survey.stride_bytes)
    view = SlotViews(memory, survey).weights(0, 0, 0)["tensor0"]
    before = view.view(torch.int16).clone()
    del memory
    assert torch.equal(view.view(torch.int16), before)

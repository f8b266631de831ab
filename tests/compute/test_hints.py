"""Near hints: the next layer's own router is asked, and what it says is believed as far as it proved right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from expertflow.ipc.messages import Hint
from expertflow.runtime.verify.local_runtime import LocalRuntime
from expertflow.tests.compute.watching import seen_in_two_steps
from expertflow.tests.models.families import FAMILIES, save_tiny
from expertflow.workers.compute.experts.hints import MAX_TOKENS, Hinter
from expertflow.workers.compute.experts.next_router import NextRouters
from expertflow.workers.surveyor.surveyor import survey_checkpoint

LAYERS, EXPERTS, TOP_K = 3, 8, 2


class Scripted:
    """Always names the same experts."""

    def __init__(self, *named: int) -> None:
        self.named = named

    def ranking(self, layer: int, hidden: torch.Tensor, depth: int) -> np.ndarray | None:
        return np.tile(np.array(self.named), (len(hidden), 1))


def hinter_of(*named: int) -> tuple[Hinter, list[Hint]]:
    sent: list[Hint] = []
    return Hinter(Scripted(*named), LAYERS, EXPERTS, TOP_K, sent.append), sent


def run_step(hinter: Hinter, step: int, routes: list[int], tokens: int = 1) -> None:
    hinter.begin_step(step)
    for layer in range(LAYERS):
        hinter.observe(layer, np.tile(np.array(routes), (tokens, 1)), torch.zeros(tokens, 4))


def test_each_layer_but_the_last_hints_at_the_next() -> None:
    hinter, sent = hinter_of(3, 1, 5, 6)
    run_step(hinter, 7, [3, 1])
    assert [(hint.step, hint.layer) for hint in sent] == [(7, 1), (7, 2)]
    assert all(set(np.flatnonzero(np.frombuffer(hint.scores, np.uint8))) == {1, 3, 5, 6} for hint in sent)


def test_scores_follow_what_proved_right() -> None:
    """The first name is always right, the second never: the scores come to say so."""
    hinter, sent = hinter_of(3, 1)
    for step in range(200):
        run_step(hinter, step, [3, 4])
    scores = np.frombuffer(sent[-1].scores, np.uint8)
    assert scores[3] > 240 and scores[1] < 15


def test_a_literal_hinter_names_the_first_top_k_as_certain() -> None:
    """And goes on so when they prove wrong."""
    sent: list[Hint] = []
    hinter = Hinter(Scripted(3, 1), LAYERS, EXPERTS, TOP_K, sent.append, uncalibrated=True)
    for step in range(50):
        run_step(hinter, step, [4, 5])
    assert sent[-1].scores == bytes(255 * (expert in (1, 3)) for expert in range(EXPERTS))


def test_two_tokens_make_an_expert_likelier_than_one() -> None:
    hinter, sent = hinter_of(3, 1)
    hinter.begin_step(0)
    hinter.observe(0, np.array([[0, 1]]), torch.zeros(1, 4))
    hinter.begin_step(1)
    hinter.observe(0, np.array([[0, 1], [0, 1]]), torch.zeros(2, 4))
    assert sent[1].scores[3] > sent[0].scores[3]


def test_many_tokens_get_no_hint_and_a_silent_step_neither() -> None:
    hinter, sent = hinter_of(3, 1)
    run_step(hinter, 0, [3, 1], tokens=MAX_TOKENS + 1)
    run_step(hinter, -1, [3, 1])
    assert not sent


@pytest.mark.parametrize("family", FAMILIES)
def test_the_next_router_says_what_the_layer_itself_will_say(family: str, tmp_path: Path) -> None:
    """Asked about the hidden states that a layer really gets, the ranking begins with the routes it really takes."""
    save_tiny(family, tmp_path)
    survey = survey_checkpoint(str(tmp_path), dtype="float32")
    with LocalRuntime(survey, survey.expert_count) as runtime, torch.inference_mode():
        source = NextRouters(runtime.model, survey.experts)
        seen = seen_in_two_steps(runtime, source, survey)
        assert len(seen) == 2 * survey.layers
        for layer, hidden, routes in seen:
            if layer > 0:
                ranking = source.ranking(layer - 1, hidden, survey.top_k + 1)
                assert ranking is not None, source.refusals
                assert ranking.shape == (len(hidden), survey.top_k + 1)
                assert (np.sort(ranking[:, : survey.top_k]) == np.sort(routes)).all()
                assert all(len(set(row)) == survey.top_k + 1 for row in ranking.tolist())


def test_a_block_that_cannot_be_asked_ends_hints_and_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_tiny("olmoe", tmp_path)
    survey = survey_checkpoint(str(tmp_path), dtype="float32")
    with LocalRuntime(survey, 4) as runtime, torch.inference_mode():
        source = NextRouters(runtime.model, survey.experts)
        speakers = [module.expertflow_layer for module in source._modules]
        assert source.ranking(0, torch.zeros(1, 7), 4) is None  # of a width that the block does not take
        assert "OlmoeSparseMoeBlock" in source.refusals[1]
        assert [module.expertflow_layer for module in source._modules] == speakers
        assert source.ranking(0, torch.zeros(1, 48), 4) is None
    assert caplog.text.count("gets no hints") == 1 and "OlmoeSparseMoeBlock" in caplog.text

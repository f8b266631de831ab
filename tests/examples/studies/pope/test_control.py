"""The negative control: missing experts weigh nothing or are replaced, and a full cache changes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from expertflow.examples.studies.pope.control import ControlModel, SimulatedCache, without_missing
from expertflow.examples.studies.pope.images import write_scene_set
from expertflow.examples.studies.pope.questions import load_questions
from expertflow.examples.studies.scoring.bad_rows import BadRows
from expertflow.examples.studies.vlm.folders import write_parts
from expertflow.examples.studies.vlm.training import new_model
from expertflow.examples.studies.vlm.vocabulary import build_tokenizer

LOGITS = torch.tensor([[4.0, 3.0, 2.0, 1.0]])
CHOSEN, WEIGHTS = torch.tensor([[0, 1]]), torch.tensor([[0.7, 0.3]])


def resident(*experts: int) -> torch.Tensor:
    return torch.tensor([expert in experts for expert in range(4)])


def test_skipping_gives_the_weight_to_the_others() -> None:
    chosen, weights = without_missing("skip", LOGITS, CHOSEN, WEIGHTS, resident(1, 2))
    assert torch.equal(chosen, CHOSEN) and torch.allclose(weights, torch.tensor([[0.0, 1.0]]))
    _, nothing = without_missing("skip", LOGITS, CHOSEN, WEIGHTS, resident(3))
    assert nothing.sum() == 0


def test_substitutes_are_the_likeliest_residents_not_chosen_already() -> None:
    chosen, weights = without_missing("substitute", LOGITS, CHOSEN, WEIGHTS, resident(1, 2, 3))
    assert chosen.tolist() == [[2, 1]] and torch.equal(weights, WEIGHTS)
    both, weights = without_missing("substitute", LOGITS, CHOSEN, WEIGHTS, resident(2, 3))
    assert both.tolist() == [[2, 3]] and torch.equal(weights, WEIGHTS)
    _, one_left = without_missing("substitute", LOGITS, CHOSEN, WEIGHTS, resident(3))
    assert torch.allclose(one_left, torch.tensor([[0.7, 0.0]]))


@pytest.mark.parametrize("policy", ["skip", "substitute"])
def test_nothing_changes_where_all_are_resident(policy: str) -> None:
    kind = "skip" if policy == "skip" else "substitute"
    chosen, weights = without_missing(kind, LOGITS, CHOSEN, WEIGHTS, resident(0, 1, 2, 3))
    assert torch.equal(chosen, CHOSEN) and torch.allclose(weights, WEIGHTS)


def test_the_least_recently_used_expert_goes() -> None:
    cache = SimulatedCache(2)
    for expert in (0, 1, 0, 2):
        cache.use(5, [expert])
    assert cache.resident(5, 4).tolist() == [True, False, True, False]
    assert (cache.hits, cache.misses) == (1, 3) and not cache.resident(4, 4).any()


def test_layers_share_slots_or_have_their_own() -> None:
    shared, own = SimulatedCache(2), SimulatedCache(2, by_layer=True)
    for cache in (shared, own):
        cache.fill([4, 4])
        assert [cache.resident(layer, 4).sum() for layer in (0, 1)] == ([1, 1] if cache is shared else [2, 2])
        cache.use(0, [2, 3])
        assert cache.resident(1, 4).any() == (cache is own)


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("control")
    write_scene_set(folder, count=4)
    (folder / "model").mkdir()
    model = new_model("ernie4_5_vl_moe", len(build_tokenizer()), seed=1)
    for weight in model.parameters():
        weight.data *= 3  # else every expert says next to nothing
    write_parts(model, "ernie4_5_vl_moe", folder / "model", torch.float32)
    return folder, folder / "model"


def test_a_full_cache_gives_the_models_own_answers_and_an_empty_one_others(asked: tuple[Path, Path]) -> None:
    questions = load_questions(asked[0], BadRows())[:24]
    model = ControlModel(asked[1])
    full = SimulatedCache(sum(model.expert_counts))
    full.fill(model.expert_counts)
    own = model.answer(questions, 8, "substitute", full)
    assert full.misses == 0 and own == model.answer(questions, 8, "skip", full)
    assert own != model.answer(questions, 8, "skip", SimulatedCache(1))

"""Every architecture of transformers' experts registry that is a causal language model, tiny and random.

One compact test each by default; more budgets, types and mutants with the marker `slow`. What cannot run is refused by
name, and docs/models.md says what holds for which: it is made of docs/results/models.json, which these tests compare
with what they see.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from expertflow.errors import CheckpointError
from expertflow.ipc.messages import RequestRow as RowOfIds
from expertflow.ipc.messages import Sampling
from expertflow.runtime.verify.local_runtime import LocalRuntime
from expertflow.tests.registry import mutants
from expertflow.tests.registry.demanding import COMPOSITES
from expertflow.tests.registry.enumeration import causal_types, modules
from expertflow.tests.registry.images import NO_IMAGES, image_types
from expertflow.tests.registry.page import PAGE, Row, load_rows, render
from expertflow.tests.registry.tiny import full_config, save_multimodal, save_tiny, tiny_config
from expertflow.tests.registry.trial import CAUGHT, TOLERANCE, exchanged_experts, live, prompt_error, reference
from expertflow.tests.surveyor.skeletons import assert_skeleton_equal, load_both
from expertflow.tests.system.schedules import Driver
from expertflow.workers.checkpoint.headers import checkpoint_files, read_headers
from expertflow.workers.checkpoint.survey import Survey
from expertflow.workers.compute.experts.hints import Hinter
from expertflow.workers.compute.experts.next_router import NextRouters
from expertflow.workers.compute.skeleton import attach
from expertflow.workers.model.architecture import WITH_IMAGES, model_class
from expertflow.workers.model.cache_rows import UnknownCacheLayer, cache_bytes, join
from expertflow.workers.model.kv_cost import kv_bytes
from expertflow.workers.model.probing.probe import probe
from expertflow.workers.model.unit import Unit
from expertflow.workers.surveyor.surveyor import survey_checkpoint
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

pytestmark = pytest.mark.usefixtures("one_thread")

ROWS = load_rows()
RUNNING = [row.model_type for row in ROWS.models if not row.refused]
REFUSED = [row.model_type for row in ROWS.models if row.refused]
FEW = 3
"""Slots: fewer than two layers need."""


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("architectures")


@cache
def saved(folders: Path, model_type: str) -> Path:
    save_tiny(model_type, folders / model_type)
    return folders / model_type


@cache
def surveyed(folders: Path, model_type: str) -> Survey:
    return survey_checkpoint(str(saved(folders, model_type)), dtype="float32")


# The registry


def test_every_architecture_of_the_registry_has_a_row() -> None:
    """A new release of transformers may bring more: `make models` tries them and writes the page."""
    assert transformers.__version__ != ROWS.transformers or {row.model_type for row in ROWS.models} == set(
        causal_types()
    )
    missing = set(causal_types()) - {row.model_type for row in ROWS.models}
    assert not missing, f"not in {PAGE.name}: {sorted(missing)}; run `make models`"


def test_the_page_is_what_the_rows_say() -> None:
    assert PAGE.read_text() == render(ROWS), "run `make models`"


def test_every_model_with_images_runs_or_has_its_reason() -> None:
    assert not WITH_IMAGES & NO_IMAGES.keys()
    assert image_types() <= WITH_IMAGES | NO_IMAGES.keys()


def test_what_is_no_causal_language_model_is_refused_by_name() -> None:
    runs = {*causal_types(), *WITH_IMAGES}
    others = [each for types in modules().values() for each in types if each not in runs]
    assert others
    for model_type in others:
        with pytest.raises(CheckpointError, match=f"'{model_type}' is not a causal language model"):
            model_class(CONFIG_MAPPING[model_type].__new__(CONFIG_MAPPING[model_type]))


# Each architecture


@pytest.mark.parametrize("model_type", RUNNING)
@torch.inference_mode()
def test_runs_as_the_page_says(folders: Path, model_type: str) -> None:
    """I1a, I1b, what its rows can do, what its cache costs; and exchanged experts are noticed."""
    survey, theirs = surveyed(folders, model_type), reference(saved(folders, model_type))
    resident, few = live(survey, survey.expert_count), live(survey, FEW)
    assert resident.error(theirs) <= TOLERANCE
    assert resident.other_tokens(theirs) == 0
    assert prompt_error(theirs, survey.vocabulary) <= TOLERANCE
    assert few.digests == resident.digests
    assert all(held <= promised for held, promised in resident.costs)
    assert Row.of(model_type, survey, resident.hints) == ROWS.by_type[model_type]
    assert live(exchanged_experts(survey), survey.expert_count).error(theirs) > CAUGHT


@pytest.mark.parametrize("model_type", REFUSED)
def test_what_cannot_run_is_refused_by_name(folders: Path, model_type: str) -> None:
    with pytest.raises(CheckpointError) as refusal:
        surveyed(folders, model_type)
    assert str(refusal.value.what) == ROWS.by_type[model_type].refused


@pytest.mark.slow
@pytest.mark.parametrize("model_type", RUNNING)
@pytest.mark.parametrize("slots", ["one", "top_k", "half"])
@torch.inference_mode()
def test_no_budget_changes_a_bit(folders: Path, model_type: str, slots: str) -> None:
    survey = surveyed(folders, model_type)
    count = {"one": 1, "top_k": survey.top_k, "half": survey.expert_count // 2}[slots]
    assert live(survey, count).digests == live(survey, survey.expert_count).digests


@pytest.mark.slow
@pytest.mark.parametrize("model_type", RUNNING)
def test_no_budget_changes_a_bit_of_bfloat16(folders: Path, model_type: str, tmp_path: Path) -> None:
    save_tiny(model_type, tmp_path, torch.bfloat16)
    survey = survey_checkpoint(str(tmp_path))
    assert survey.dtype == "bfloat16"
    assert live(survey, FEW).digests == live(survey, survey.expert_count).digests


@pytest.mark.slow
@pytest.mark.parametrize("model_type", RUNNING)
@pytest.mark.parametrize("dtype", ["auto", "float32", "bfloat16", "float16"])
def test_skeleton_equals_from_pretrained(folders: Path, model_type: str, dtype: str) -> None:
    assert_skeleton_equal(*load_both(saved(folders, model_type), dtype))


@pytest.mark.slow
@pytest.mark.parametrize("model_type", RUNNING)
@pytest.mark.parametrize("mutant", ["stale slots", "lost waves", "mask off by one", "swapped rows"])
@torch.inference_mode()
def test_mutants_are_caught(folders: Path, model_type: str, mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    survey = surveyed(folders, model_type)
    mutation: Any = None
    slots = survey.expert_count
    match mutant:
        case "stale slots":
            mutation, slots = mutants.stale_slots, FEW
        case "lost waves":
            mutants.lost_waves(monkeypatch)
        case "mask off by one" if survey.rows.padding:
            mutation = mutants.mask_off_by_one
        case "swapped rows" if survey.rows.moving:
            mutants.swapped_rows(monkeypatch)
        case _:
            pytest.skip("its rows are never padded, or never moved")
    assert live(survey, slots, mutation).error(reference(saved(folders, model_type))) > CAUGHT


# What single architectures are known for


@pytest.mark.parametrize("model_type", ["gemma4_text", "nemotron_h"])
@torch.inference_mode()
def test_a_router_is_asked_alone_where_its_block_cannot(folders: Path, model_type: str) -> None:
    """Asked about the states that a layer's router really gets, it says what that layer really takes."""
    survey = surveyed(folders, model_type)
    seen: list[tuple[int, Any, np.ndarray]] = []
    with LocalRuntime(survey, survey.expert_count) as runtime:
        source = NextRouters(runtime.model, survey.experts)

        class Watcher(Hinter):
            def observe(self, layer: int, routes: np.ndarray, hidden: torch.Tensor) -> None:
                seen.append((layer, source._router, routes.copy()))

        attach(Watcher(source, survey.layers, survey.experts, survey.top_k, lambda hint: None), runtime.model)
        driver = Driver(runtime, survey.vocabulary)
        driver.prefill(0, [[3, 5, 9, 11], [7, 8, 9, 10]])
        driver.decode(0)
        assert len(seen) == 2 * survey.layers
        for layer, router, routes in seen:
            states = router.states.reshape(-1, router.states.shape[-1])
            assert (source._choose(layer, router.name, states).numpy() == routes).all()


@pytest.mark.parametrize("length", [1, 9, 120, 130, 300])
@torch.inference_mode()
def test_a_cache_that_compresses_costs_what_is_promised_at_any_length(folders: Path, length: int) -> None:
    """DeepSeek-V4 keeps up to a hundred positions until it makes one of them: short prompts alone would mislead."""
    config = full_config("deepseek_v4")
    rates = config.compress_rates
    tiny = tiny_config("deepseek_v4")
    tiny.compress_rates = rates
    cost, model = kv_bytes(tiny, torch.float32), AutoModelForCausalLM.from_config(tiny).eval()
    unit = Unit(tiny)
    unit.run(model, unit.prepare_prefill([RowOfIds(0, [5] * length, 0, Sampling())]))
    assert unit.kv_bytes <= cost.per_position_bytes * length + cost.per_row_bytes
    assert cost.per_position_bytes * 300 < 10 * cost.per_row_bytes


@pytest.mark.parametrize("model_type", ["qwen4_exp"])
@torch.inference_mode()
def test_the_language_model_of_a_multimodal_checkpoint_runs_alone(model_type: str, tmp_path: Path) -> None:
    """Published names have a prefix more, and the weights of the vision part are left out."""
    save_multimodal(model_type, tmp_path)
    file = tmp_path / "config.json"  # else it would run with its images
    file.write_text(file.read_text().replace("ForConditionalGeneration", "ForCausalLM"))
    assert any("visual" in name for name in read_headers(checkpoint_files(tmp_path)))
    survey, theirs = survey_checkpoint(str(tmp_path), dtype="float32"), reference(tmp_path)
    assert live(survey, FEW).error(theirs) <= TOLERANCE
    assert_skeleton_equal(*load_both(tmp_path, "bfloat16"))


@pytest.mark.parametrize("lengths", [(13, 14), (13, 17), (3, 30)])
@torch.inference_mode()
def test_compressed_rows_of_different_lengths_are_refused_before_anything_moves(lengths: tuple[int, int]) -> None:
    """With as many windows compressed, or not: nothing that is padded makes them alike."""
    model = AutoModelForCausalLM.from_config(tiny_config("deepseek_v4")).eval()
    caches = []
    for length in lengths:
        unit = Unit(model.config)
        unit.run(model, unit.prepare_prefill([RowOfIds(0, [5] * length, 0, Sampling())]))
        caches.append(unit.cache)
    before = [cache_bytes(cache) for cache in caches]
    with pytest.raises(UnknownCacheLayer):
        join(*caches)
    assert [cache_bytes(cache) for cache in caches] == before


@pytest.mark.slow
@pytest.mark.parametrize("model_type", [each for each in RUNNING if each not in COMPOSITES])
def test_a_configuration_of_full_size_gives_what_the_tiny_one_does(model_type: str) -> None:
    config = full_config(model_type)
    abilities, row = probe(config), ROWS.by_type[model_type]
    assert (abilities.padding, abilities.moving, abilities.reason) == (row.padding, row.moving, row.reason)
    assert kv_bytes(config, torch.bfloat16).per_row_bytes >= 0

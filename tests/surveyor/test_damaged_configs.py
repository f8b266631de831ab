"""Whatever stands in a config.json: the model runs, or one typed error names file, key and value.

A seeded sample by default; every key with every damage, and a step of each model that passes, with the marker `slow`.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from expertflow.errors import ExpertFlowError
from expertflow.runtime.verify.local_runtime import LocalRuntime
from expertflow.tests.checkpoint.broken import refusal
from expertflow.tests.registry.tiny import save_multimodal, save_tiny
from expertflow.tests.surveyor.config_damage import DAMAGE, KeyPath, damaged, key_paths, read_config, write_config
from expertflow.tests.system.schedules import Driver
from expertflow.workers.checkpoint.faulty_setting import describe_faulty_setting, find_faulty_setting
from expertflow.workers.checkpoint.survey import Survey
from expertflow.workers.surveyor.sizing import model_sizes
from expertflow.workers.surveyor.surveyor import survey_folder

pytestmark = pytest.mark.usefixtures("one_thread")

FAMILIES = ("olmoe", "deepseek_v3", "qwen3_next", "nemotron_h", "qwen3_vl_moe")
SAMPLE = 12
"""Of each family, by default: several hundred others are `slow`."""
OTHER_PLACES = ("belong together", "is missing", "no routed experts", "experts have no values", "never choose experts")
"""Errors that name a tensor or the model instead of the key: the value is a good one, of another model."""


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    """The library and torch warn of the nonsense that they are given here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("damaged")


def saved(folders: Path, family: str) -> tuple[Path, dict[str, Any]]:
    """A valid tiny checkpoint and its config.json, which is written back."""
    folder, valid = folders / family, folders / f"{family}.json"
    if not folder.exists():
        save_multimodal(family, folder) if family == "qwen3_vl_moe" else save_tiny(family, folder)
        valid.write_bytes((folder / "config.json").read_bytes())
    (folder / "config.json").write_bytes(valid.read_bytes())
    return folder, read_config(folder)


def cases(values: dict[str, Any]) -> list[tuple[KeyPath, str]]:
    return [(path, damage) for path in key_paths(values) for damage in DAMAGE]


def surveyed(folder: Path, path: KeyPath) -> Survey | None:
    """None if it was refused, in words that a user can follow."""
    try:
        return survey_folder(folder)
    except ExpertFlowError as error:
        assert error.where and error.remedy, (path, str(error))
        assert path[-1] in str(error) or any(text in str(error) for text in OTHER_PLACES) or "config.json" in str(error)
        assert "\n" not in str(error), (path, str(error))
    return None


@pytest.mark.parametrize("family", FAMILIES)
def test_a_damaged_value_is_a_typed_error_or_harmless(folders: Path, family: str):
    folder, values = saved(folders, family)
    for path, damage in random.Random(7).sample(cases(values), SAMPLE):
        write_config(folder, damaged(values, path, damage))
        surveyed(folder, path)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_every_value_damaged_in_every_way(folders: Path, family: str):
    folder, values = saved(folders, family)
    refused = 0
    for path, damage in cases(values):
        write_config(folder, damaged(values, path, damage))
        survey = surveyed(folder, path)
        if survey is None:
            refused += 1
            continue
        with LocalRuntime(survey, survey.expert_count) as runtime:
            stepped = Driver(runtime, survey.vocabulary)
            try:
                stepped.prefill(1, [[min(3, survey.vocabulary - 1)] * 4])
            except AssertionError as error:  # a row that failed, with its reason: NaN in, NaN out
                assert "NaN" in str(error), (path, damage, str(error))
    assert refused > len(cases(values)) // 4


NAMED: list[tuple[str, KeyPath, str]] = [
    ("olmoe", ("hidden_size",), "text"),
    ("olmoe", ("num_hidden_layers",), "large"),
    ("olmoe", ("num_hidden_layers",), "zero"),
    ("olmoe", ("num_experts_per_tok",), "large"),
    ("olmoe", ("num_attention_heads",), "negative"),
    ("olmoe", ("num_key_value_heads",), "zero"),
    ("olmoe", ("rms_norm_eps",), "text"),
    ("olmoe", ("hidden_act",), "text"),
    ("olmoe", ("rope_parameters", "rope_type"), "text"),
    ("olmoe", ("rope_parameters", "rope_theta"), "text"),
    ("deepseek_v3", ("n_group",), "negative"),
    ("deepseek_v3", ("kv_lora_rank",), "null"),
    ("nemotron_h", ("chunk_size",), "zero"),
    ("qwen3_vl_moe", ("vision_config", "depth"), "large"),
    ("qwen3_vl_moe", ("vision_config", "patch_size"), "negative"),
    ("qwen3_vl_moe", ("text_config", "model_type"), "object"),
]


@pytest.mark.parametrize(("family", "path", "damage"), NAMED)
def test_file_key_and_value_are_named(folders: Path, family: str, path: KeyPath, damage: str):
    folder, values = saved(folders, family)
    write_config(folder, damaged(values, path, damage))
    text = refusal(folder, path[-1], folder / "config.json")
    value = DAMAGE[damage]
    assert str(value) in text or "null" in text


@pytest.mark.parametrize(("family", "path", "damage"), NAMED[:-1:3])
def test_plan_without_weights_says_the_same(folders: Path, family: str, path: KeyPath, damage: str):
    folder, values = saved(folders, family)
    write_config(folder, damaged(values, path, damage))
    with pytest.raises(ExpertFlowError) as refused:
        model_sizes(folder)
    assert path[-1] in refused.value.what and "config.json" in refused.value.where


# Who is to blame


def test_the_key_whose_default_works_is_blamed():
    values, defaults = {"a": 5, "b": {"c": 7}, "d": -4}, {"a": 1, "b": {"c": 2}, "d": 4}
    assert find_faulty_setting(values, defaults, lambda other: other["b"]["c"] == 2) == ("b", "c")
    assert describe_faulty_setting(values, defaults, lambda other: other["a"] == 1) == "; a is 5"
    assert values == {"a": 5, "b": {"c": 7}, "d": -4}


def test_the_oddest_value_is_blamed_where_none_works():
    values: dict[str, Any] = {"a": 5, "b": -1, "c": "x"}
    defaults = {"a": 4, "b": 4, "c": "y"}
    assert find_faulty_setting(values, defaults, lambda other: False) == ("b",)
    assert find_faulty_setting(values | {"c": 3}, defaults, lambda other: False) == ("c",)


def test_nobody_is_blamed_without_a_reason():
    assert find_faulty_setting({"a": 5, "b": 1}, {"a": 4, "b": 1}, lambda other: False) is None
    assert describe_faulty_setting({"a": 4}, {"a": 4}, lambda other: True) == ""


def test_the_search_ends_in_time():
    values = {f"k{number}": 5 for number in range(50)}
    now_s, asked = 0.0, []

    def works(other: dict[str, Any]) -> bool:
        nonlocal now_s
        asked.append(other)
        now_s += 2.0
        return False

    assert find_faulty_setting(values, {key: 4 for key in values}, works, lambda: now_s) is None
    assert len(asked) == 3

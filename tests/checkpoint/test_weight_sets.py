"""Folders with more than one set of weights: every tensor comes from the one that `from_pretrained` takes."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from expertflow.configs.schema import Config
from expertflow.errors import CheckpointError
from expertflow.ipc.messages import Surveyed
from expertflow.runtime.engine.survey_stage import run_survey
from expertflow.runtime.verify.local_runtime import LocalRuntime
from expertflow.tests.checkpoint.broken import INDEX, WEIGHTS, edit_config, refusal
from expertflow.tests.models.families import VOCABULARY, save_tiny
from expertflow.tests.system.references import random_prompts
from expertflow.tests.system.schedules import Driver
from expertflow.workers.compute.executor import sample
from expertflow.workers.model.unit import RowAbilities
from expertflow.workers.surveyor.entry import plan_sizes
from expertflow.workers.surveyor.surveyor import survey_checkpoint
from msgspec import Raw, msgpack
from transformers import AutoModelForCausalLM

pytestmark = pytest.mark.usefixtures("one_thread")
OTHER = "consolidated.safetensors"


@pytest.fixture(scope="module")
def saves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models of one shape, each in one file and in shards."""
    root = tmp_path_factory.mktemp("saves")
    for seed, name in enumerate(("one", "two")):
        save_tiny("olmoe", root / name, seed=seed)
        save_tiny("olmoe", root / f"{name}-sharded", seed=seed, max_shard_size="60KB")
    return root


def merged(saves: Path, names: list[str], folder: Path) -> Path:
    """A folder into which these were saved one after the other."""
    for name in names:
        shutil.copytree(saves / name, folder, dirs_exist_ok=True)
    return folder


def whole_beside_shards(saves: Path, folder: Path) -> Path:
    return merged(saves, ["one", "two-sharded"], folder)


def shards_beside_whole(saves: Path, folder: Path) -> Path:
    return merged(saves, ["two-sharded", "one"], folder)


def index_of_files_that_are_gone(saves: Path, folder: Path) -> Path:
    merged(saves, ["one"], folder)
    shutil.copyfile(saves / "two-sharded" / INDEX, folder / INDEX)
    return folder


def unreadable_index(saves: Path, folder: Path) -> Path:
    merged(saves, ["one"], folder)
    (folder / INDEX).write_text("{")
    return folder


def stray_shard(saves: Path, folder: Path) -> Path:
    """Of an earlier save in more shards, beside the present ones."""
    merged(saves, ["two-sharded"], folder)
    shutil.copyfile(saves / "one" / WEIGHTS, folder / "model-00009-of-00009.safetensors")
    return folder


def variant_and_pickles(saves: Path, folder: Path) -> Path:
    merged(saves, ["two"], folder)
    shutil.copyfile(saves / "one" / WEIGHTS, folder / "model.fp16.safetensors")
    torch.save(AutoModelForCausalLM.from_pretrained(saves / "one").state_dict(), folder / "pytorch_model.bin")
    return folder


def named_by_the_configuration(saves: Path, folder: Path) -> Path:
    merged(saves, ["one"], folder)
    shutil.copyfile(saves / "two" / WEIGHTS, folder / OTHER)
    edit_config(folder, transformers_weights=OTHER)
    return folder


def index_named_by_the_configuration(saves: Path, folder: Path) -> Path:
    merged(saves, ["two-sharded", "one"], folder)
    (folder / INDEX).rename(folder / "other.safetensors.index.json")
    edit_config(folder, transformers_weights="other.safetensors.index.json")
    return folder


KINDS = (
    whole_beside_shards, shards_beside_whole, index_of_files_that_are_gone, unreadable_index, stray_shard,
    variant_and_pickles, named_by_the_configuration, index_named_by_the_configuration,
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_logits_are_those_of_from_pretrained(kind, saves: Path, tmp_path: Path) -> None:  # noqa: ANN001
    """Experts of one model with the attention of another compute something, and nobody notices."""
    folder = kind(saves, tmp_path / "folder")
    survey = survey_checkpoint(str(folder), dtype="float32")
    seen: list[torch.Tensor] = []

    def choose(step, unit, logits):  # noqa: ANN001, ANN202 - the signature of Chooser
        seen.append(logits[0].clone())
        return sample(step, unit, logits)

    with LocalRuntime(survey, survey.expert_count, RowAbilities.of(survey.rows), choose) as runtime:
        driver = Driver(runtime, VOCABULARY)
        driver.prefill(1, random_prompts(1, VOCABULARY, seed=3))
    with torch.inference_mode():
        expected = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(
            torch.tensor([driver.sequences[0].prompt_ids])
        ).logits[0, -1]
    assert (seen[0] - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert len(survey.notices) == 1 and str(folder) in survey.notices[0]
    assert plan_sizes(str(folder), dtype="float32") == survey


def test_one_set_alone_says_nothing(saves: Path) -> None:
    for name in ("one", "two-sharded"):
        assert survey_checkpoint(str(saves / name)).notices == []


def test_what_is_not_read_is_said_once(saves: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With the file that is read, so that nobody has to guess."""
    survey = survey_checkpoint(str(whole_beside_shards(saves, tmp_path / "folder")))

    class Early:
        def send(self, message: object) -> None: ...

        def receive(self, timeout_s: float) -> Surveyed:
            return Surveyed(Raw(msgpack.encode(survey)))

    with caplog.at_level(logging.WARNING):
        run_survey(Early(), Config(model="m"))  # pyright: ignore[reportArgumentType]
    [record] = caplog.records
    assert WEIGHTS in record.message and INDEX in record.message and "and 10 more" in record.message


@pytest.mark.parametrize("name", ["../elsewhere.safetensors", "model.bin", 7, ["model.safetensors"]])
def test_weights_outside_of_the_folder(name: object, single: Path) -> None:
    edit_config(single, transformers_weights=name)
    refusal(single, "transformers_weights", single / "config.json")


def test_named_weights_that_are_missing(single: Path) -> None:
    edit_config(single, transformers_weights=OTHER)
    assert WEIGHTS in refusal(single, f"has no {OTHER}", single)


def test_a_folder_with_a_variant_alone_has_no_weights(single: Path) -> None:
    """The library takes it for none, too; its name helps."""
    (single / WEIGHTS).rename(single / "model.fp16.safetensors")
    refusal(single, "it has model.fp16.safetensors", single)


def test_an_index_that_is_not_read_is_no_reason_to_refuse(single: Path) -> None:
    """Names as a packed checkpoint has them, left over in an index."""
    (single / INDEX).write_text(json.dumps({"weight_map": {"a.qweight": "a.safetensors", "a.qzeros": "a.safetensors"}}))
    assert survey_checkpoint(str(single)).files == [str(single / WEIGHTS)]
    (single / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match="gptq"):
        survey_checkpoint(str(single))

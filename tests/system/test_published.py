"""Quantised checkpoints through the pipeline: logits and tokens of transformers' dequantised model (I1b)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from expertflow import Client, Config, Supervisor
from expertflow.runtime.verify.local_runtime import LocalRuntime
from expertflow.tests.models.families import VOCABULARY
from expertflow.tests.models.published import library_model, save_block_fp8, save_mxfp4
from expertflow.tests.system.references import Reference, random_prompts
from expertflow.tests.system.schedules import Driver
from expertflow.workers.compute.executor import sample
from expertflow.workers.model.unit import RowAbilities
from expertflow.workers.surveyor.surveyor import survey_checkpoint

CASES = [("deepseek_v3", "host"), ("gpt_oss", "disk")]


def save(family: str, folder: Path) -> None:
    if family == "gpt_oss":
        save_mxfp4(folder)
    else:
        save_block_fp8(family, folder, max_shard_size="60KB")


@pytest.mark.parametrize(("family", "tier"), CASES)
def test_logits_of_the_dequantised_model(family: str, tier: str, tmp_path: Path) -> None:
    """Teacher-forced in float32, at a quarter of the experts, one prompt alone."""
    save(family, tmp_path)
    survey = survey_checkpoint(str(tmp_path), dtype="float32")
    seen: list[torch.Tensor] = []

    def choose(step, unit, logits):  # noqa: ANN001, ANN202 - the signature of Chooser
        seen.append(logits[0].clone())
        return sample(step, unit, logits)

    slots = survey.expert_count // 4
    with LocalRuntime(survey, slots, RowAbilities.of(survey.rows), choose, None, tier=tier) as runtime:
        driver = Driver(runtime, VOCABULARY)
        driver.prefill(1, random_prompts(1, VOCABULARY, seed=3))
        for _ in range(8):
            driver.decode(1)
    sequence = driver.sequences[0]
    whole = torch.tensor([sequence.prompt_ids + sequence.token_ids])
    with torch.inference_mode():
        expected = library_model(tmp_path, "float32")(whole).logits[0, len(sequence.prompt_ids) - 1 : -1]
    assert (torch.stack(seen) - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("family", "tier"), [("deepseek_v3", "disk"), pytest.param("gpt_oss", "host", marks=pytest.mark.slow)]
)
def test_tokens_of_the_dequantised_model(family: str, tier: str, tmp_path: Path) -> None:
    """In real processes, in float32, at a quarter of the experts."""
    save(family, tmp_path)
    prompts = random_prompts(6, VOCABULARY)
    config = Config.load(model=tmp_path, expert_memory="25%", batch_size=4, tier=tier, dtype="float32")
    with Supervisor(config) as engine, Client(engine.address) as client:
        done = client.generate(prompts, max_new_tokens=12, eos_ids=[])
    reference = Reference(library_model(tmp_path, "float32"))
    assert [list(each.token_ids) for each in done] == [reference.greedy(prompt, 12) for prompt in prompts]

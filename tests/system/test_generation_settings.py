"""A model's own generation settings, from generation_config.json to the token, and to `verify`."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from expertflow.configs.schema import Config
from expertflow.ipc.messages import RequestRow, RunStep, Sampling
from expertflow.ipc.shared.output_file import OutputFile
from expertflow.runtime.verify.checks import Verification
from expertflow.runtime.verify.local_runtime import LocalRuntime
from expertflow.runtime.verify.report import CHOSEN
from expertflow.tests.models.families import save_tiny
from expertflow.tests.models.switch import save_switch
from expertflow.tests.system.references import random_prompts
from expertflow.tests.system.scheduled import Scheduled
from expertflow.workers.checkpoint.survey import Survey
from expertflow.workers.compute.executor import sample
from expertflow.workers.compute.recording import Recording
from expertflow.workers.model.unit import RowAbilities
from expertflow.workers.predictor.registry import ModelShape, make_forecaster
from expertflow.workers.scheduler.limits import SchedulerLimits
from expertflow.workers.scheduler.request_frontend import own_settings
from expertflow.workers.scheduler.shell import model_info
from expertflow.workers.surveyor.surveyor import survey_checkpoint
from transformers import AutoModelForCausalLM, SwitchTransformersForConditionalGeneration

pytestmark = pytest.mark.usefixtures("one_thread")
VOCABULARY, OUTPUT = 128, 14
MANY: dict[str, Any] = {
    "eos_token_id": [7, 9, 11, 13, 15, 17, 19, 21, 23, 25], "repetition_penalty": 1.4, "no_repeat_ngram_size": 3,
    "bad_words_ids": [[30], [31, 32]], "suppress_tokens": [40, 41, 42], "begin_suppress_tokens": [50, 51],
    "min_new_tokens": 4, "sequence_bias": [[[60], 1.5]], "encoder_repetition_penalty": 1.1,
}  # fmt: skip
ASKED = Sampling(
    repetition_penalty=1.2, presence_penalty=0.7, frequency_penalty=-0.2, logit_bias={60: -3.0}, min_new_tokens=2
)
FORCED = {"eos_token_id": 7, "forced_eos_token_id": 9, "forced_bos_token_id": 80, "begin_suppress_tokens": [81, 82, 83]}


def save(family: str, folder: Path, stated: dict[str, Any]) -> Any:
    """Save a tiny model with these settings; return what loads transformers' own."""
    if family == "switch":
        save_switch(folder)
        stated = stated | {"decoder_start_token_id": 0}
    else:
        save_tiny(family, folder)
    (folder / "generation_config.json").write_text(json.dumps(stated))
    return SwitchTransformersForConditionalGeneration if family == "switch" else AutoModelForCausalLM


@torch.inference_mode()
def theirs(kind: Any, folder: Path, prompts: list[list[int]]) -> list[list[int]]:
    """Return greedy tokens as transformers' `generate` gives them, each prompt alone."""
    model = kind.from_pretrained(folder, dtype=torch.float32).eval()
    outputs = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        output = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=OUTPUT, do_sample=False)[0]
        outputs.append(output[1 if model.config.is_encoder_decoder else len(prompt) :].tolist())
    return outputs


def ours(survey: Survey, prompts: list[list[int]], delivered: list[list[int]] | None = None) -> list[list[int]]:
    """Return tokens through the scheduler's core and compute, in shared units."""
    forecaster = make_forecaster(Config(predictor="table"), ModelShape.of(survey))
    assert forecaster is not None
    with LocalRuntime(survey, survey.expert_count // 2, RowAbilities.of(survey.rows)) as runtime:
        limits = SchedulerLimits(batch_size=4, prefill_tokens=64, queue_limit=100, kv_bytes=2**30, gather_ns=0)
        engine = Scheduled.of(runtime, forecaster, survey, limits, model_info(survey))
        return engine.run(prompts, [OUTPUT] * len(prompts), delivered)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("stated", [MANY, FORCED], ids=["many", "forced"])
@pytest.mark.parametrize("family", ["qwen3_moe", "switch"])
def test_tokens_and_ends_are_those_of_generate(family: str, stated: dict[str, Any], tmp_path: Path) -> None:
    """Alone and in a batch, and again after a death when part of the output is there (I4)."""
    kind = save(family, tmp_path, stated)
    prompts = [[5], *random_prompts(5, VOCABULARY)]
    expected = theirs(kind, tmp_path, prompts)
    survey = survey_checkpoint(str(tmp_path), dtype="float32")
    assert ours(survey, prompts) == expected
    cut = [tokens[: number % len(tokens)] for number, tokens in enumerate(expected)]
    assert ours(survey, prompts, cut) == expected
    ignoring = survey_checkpoint(str(tmp_path), dtype="float32", generation_settings="ignore")
    assert ignoring.eos_ids == survey.eos_ids and ours(ignoring, prompts) != expected


def record(survey: Survey, folder: Path, changed: dict[str, Any]) -> None:
    """A few rows, as compute records them; every second one has options of its own."""
    folder.mkdir()
    rows: list[RequestRow] = []
    for number, ids in enumerate(random_prompts(4, VOCABULARY)):
        sampling = ASKED if number % 2 else Sampling()
        settings = own_settings(survey.settings, tuple(survey.eos_ids), OUTPUT, sampling)
        settings = msgspec.structs.replace(settings, **changed)
        rows.append(RequestRow(number, ids, 0, sampling, settings=settings))
    with ExitStack() as stack:
        files = [OutputFile(folder / f"{name}.1.msgpack", name, buffering=0) for name in ("steps", "routes")]
        for file in files:
            stack.callback(file.close)
        recording = Recording(files[0], files[1])
        runtime = stack.enter_context(LocalRuntime(survey, 8, RowAbilities.of(survey.rows), recording.watch(sample)))
        for number in range(OUTPUT):
            step = RunStep(number=number, unit=0, admit=[] if number else rows)
            recording.step(step, *runtime.run(step))


@pytest.mark.parametrize("family", ["qwen3_moe", pytest.param("switch", marks=pytest.mark.slow)])
def test_verify_uses_the_same_settings(family: str, tmp_path: Path) -> None:
    """Tokens that were chosen without the settings are found out, though their logits are right."""
    save(family, tmp_path, MANY)
    survey = survey_checkpoint(str(tmp_path), dtype="float32")
    record(survey, tmp_path / "honoured", {})
    checks = list(Verification(tmp_path / "honoured", str(tmp_path), dtype="float32").checks())
    assert len(checks) == 3 and all(check.holds for check in checks), checks
    record(survey, tmp_path / "other", {"repetition_penalty": 1.0})
    checks = list(Verification(tmp_path / "other", str(tmp_path), dtype="float32").checks())
    assert [check.claim for check in checks if not check.holds] == [CHOSEN]

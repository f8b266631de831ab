"""Models with an encoder beyond their tokens: traces, forecasts that are acted on, verification (I1a, I1b, I1c)."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from expertflow import Client, Config, Supervisor
from expertflow.errors import UsageError
from expertflow.ipc.messages import RequestRow, RunStep, Sampling
from expertflow.ipc.shared.output_file import OutputFile
from expertflow.runtime.verify.checks import Verification
from expertflow.runtime.verify.local_runtime import LocalRuntime
from expertflow.tests.models.nllb import save_nllb
from expertflow.tests.models.switch import VOCABULARY, save_switch, stepwise
from expertflow.tests.system.references import random_prompts
from expertflow.tests.system.schedules import Driver
from expertflow.workers.compute.executor import sample
from expertflow.workers.compute.recording import Recording
from expertflow.workers.model.families.separate_experts import SeparateExperts
from expertflow.workers.model.unit import RowAbilities
from expertflow.workers.surveyor.surveyor import survey_checkpoint
from expertflow.workers.traces.reading import read_hidden, read_step_log, read_trace
from expertflow.workers.traces.routing import UNROUTED
from transformers import SwitchTransformersForConditionalGeneration

SAVERS = {"switch": save_switch, "nllb": save_nllb}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("switch")
    save_switch(folder)
    return folder


# Traces, and forecasts in a running engine


@pytest.mark.timeout(240)
def test_a_trace_is_what_ran_and_forecasts_bring_experts_in(folder: Path, tmp_path: Path) -> None:
    """Hints are off: what is prefetched was forecast, by a table that learned from both stacks."""
    prompts = random_prompts(4, VOCABULARY)
    options = {"expert_memory": "40%", "batch_size": 4, "predictor": "table", "hints": "off", "prediction": "on"}
    config = Config.load(model=folder, trace=str(tmp_path / "trace"), **options)
    with Supervisor(config) as engine, Client(engine.address) as client:
        done = [client.generate(prompts, max_new_tokens=16, eos_ids=[]) for _ in range(3)][-1]
        deadline = time.monotonic() + 20  # what the loader counted is published once a second
        while (counters := client.stats().stages["loader"].counters).get("prefetches", 0) <= 10:
            assert time.monotonic() < deadline, counters
            time.sleep(0.1)
    assert counters["useful"] + counters["promoted"] > counters["wasted"]
    check_trace(
        folder, tmp_path / "trace", [(prompt, list(each.token_ids)) for prompt, each in zip(prompts, done, strict=True)]
    )


def check_trace(model: Path, folder: Path, texts: list[tuple[list[int], list[int]]]) -> None:
    trace, log = read_trace(folder), read_step_log(folder)
    library = SwitchTransformersForConditionalGeneration.from_pretrained(model).eval()
    assert (trace.layers, trace.encoder_layers, trace.sequences) == (4, 2, 3 * len(texts))
    for number, (prompt, output) in enumerate(texts):
        begin, end = trace.offsets[number : number + 2]
        assert trace.token_ids[begin:end].tolist() == [*prompt, library.config.decoder_start_token_id, *output[:-1]]
        assert np.array_equal(trace.routes[begin:end, :, 0], routes_of_transformers(library, prompt, output[:-1]))
    assert trace.weights is not None and ((trace.weights > 0) <= (trace.routes != UNROUTED)).all()
    assert (log.compute_ns[log.decoded, :2] == 0).all() and (log.compute_ns[log.decoded, 2:] > 0).all()
    assert log.planned.any() and log.plans[log.decoded, :2].max() == 0 and log.plans[log.decoded, 2:].max() > 0
    decoder = trace.decoder_part()
    assert decoder.layers == 2 and decoder.routes.max() < 8 and decoder.sequences == trace.sequences
    with pytest.raises(UsageError, match="no token sees all layers"):
        read_hidden(folder)


def routes_of_transformers(library: Any, prompt: list[int], following: list[int]) -> np.ndarray:
    """[prompt, start and following, layers]: what its routers like best."""
    seen: dict[str, list[torch.Tensor]] = {}
    hooks = []
    for name, module in library.named_modules():
        if name.endswith("router.classifier"):
            chosen = seen.setdefault(name, [])
            hooks.append(
                module.register_forward_hook(lambda m, i, out, chosen=chosen: chosen.append(out[0].argmax(-1)))
            )
    stepwise(library, prompt, following)
    for hook in hooks:
        hook.remove()
    whole = np.full((len(prompt) + 1 + len(following), len(seen)), UNROUTED, dtype=np.uint16)
    for layer, (name, chosen) in enumerate(seen.items()):
        own = slice(len(prompt)) if name.startswith("encoder.") else slice(len(prompt), None)
        whole[own, layer] = torch.cat(chosen).numpy()
    return whole


@pytest.mark.parametrize("family", SAVERS)
def test_hints_alone_bring_experts_in(family: str, tmp_path: Path) -> None:
    """Of the next layer within each stack, asked by its own router."""
    SAVERS[family](tmp_path)
    survey = survey_checkpoint(str(tmp_path))
    with LocalRuntime(survey, 12, RowAbilities.of(survey.rows)) as runtime:
        driver = Driver(runtime, survey.vocabulary)
        prompts = random_prompts(24, VOCABULARY)
        for unit in range(8):  # rows that go on for long settle on few experts, and little is left to bring in
            driver.prefill(unit, prompts[3 * unit : 3 * unit + 3])
            for _ in range(12):
                driver.decode(unit)
        statistics = runtime.ledger.statistics()
    assert statistics.prefetches and statistics.useful + statistics.promoted > statistics.wasted


# Verification


@pytest.mark.parametrize("family", ["switch", pytest.param("nllb", marks=pytest.mark.slow)])
def test_bfloat16_is_verified(family: str, tmp_path: Path) -> None:
    """Run again from the recording alone: the same bits, the library's logits, its error (I1a, I1b, I1c)."""
    SAVERS[family](tmp_path, dtype=torch.bfloat16)
    record(tmp_path)
    checks = list(Verification(tmp_path / "record", str(tmp_path)).checks())
    assert [check.holds for check in checks] == [True] * 3, checks


@pytest.mark.slow
@pytest.mark.parametrize("family", SAVERS)
def test_mutant_with_a_larger_error_than_the_librarys_is_caught(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    SAVERS[family](tmp_path, dtype=torch.bfloat16)
    record(tmp_path)
    honest = SeparateExperts.run_routed
    monkeypatch.setattr(SeparateExperts, "run_routed", lambda self, *given: honest(self, *given) * 1.5)
    check = Verification(tmp_path / "record", str(tmp_path)).bfloat16()
    assert not check.holds, check


def record(model: Path) -> None:
    """A few rows of it, as compute records them."""
    survey = survey_checkpoint(str(model))
    (model / "record").mkdir()
    rows = [RequestRow(number, ids, 0, Sampling()) for number, ids in enumerate(random_prompts(6, VOCABULARY))]
    with ExitStack() as stack:
        files = [OutputFile(model / "record" / f"{name}.1.msgpack", name, buffering=0) for name in ("steps", "routes")]
        for file in files:
            stack.callback(file.close)
        recording = Recording(files[0], files[1])
        choose = recording.watch(sample)
        runtime = stack.enter_context(LocalRuntime(survey, 6, RowAbilities.of(survey.rows), choose))
        for number in range(9):
            step = RunStep(number=number, unit=0, admit=[] if number else rows)
            recording.step(step, *runtime.run(step))

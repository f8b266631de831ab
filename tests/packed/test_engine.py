"""Packed experts in real processes: the tokens of transformers through deaths, from every tier, and on a device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from expertflow import Client, Config, Supervisor
from expertflow.runtime.engine.budgets import packing_choice
from expertflow.runtime.verify.checks import Verification
from expertflow.runtime.verify.subprocess import run_checks
from expertflow.tests.models.families import VOCABULARY
from expertflow.tests.models.published import library_model, save_block_fp8, save_mxfp4
from expertflow.tests.system.awaiting import await_tokens
from expertflow.tests.system.references import Reference, random_prompts
from expertflow.workers.surveyor.surveyor import survey_checkpoint

TOKENS = 40
PLACES: dict[str, dict[str, Any]] = {
    "disk": {"expert_memory": "25%"},
    "host": {"expert_memory": "25%", "tier": "host"},
    "dma": {"expert_memory": "25%", "tier": "host", "link": "dma", "link_rate": "20MB"},
    "device": {"expert_memory": "20%", "host_memory": "33%", "device": "fake:1"},
}
CASES = [("mxfp4", "device")]
MORE = [("mxfp4", "disk"), ("fp8", "dma"), ("fp8", "host")]


def save(form: str, folder: Path) -> None:
    if form == "mxfp4":
        save_mxfp4(folder)
    else:
        save_block_fp8("qwen3_moe", folder)


@pytest.mark.timeout(240)
@pytest.mark.parametrize(("form", "place"), [*CASES, *(pytest.param(*case, marks=pytest.mark.slow) for case in MORE)])
def test_tokens_through_deaths(form: str, place: str, tmp_path: Path) -> None:
    """I1b and I4: the loader and compute are killed mid-stream; budgets count the packed bytes."""
    save(form, tmp_path)
    record = {"record": str(tmp_path / "record")} if place == "device" else {}
    config = Config.load(model=tmp_path, dtype="float32", experts_in="packed", batch_size=4, **PLACES[place], **record)
    prompts = random_prompts(4, VOCABULARY)
    with Supervisor(config) as engine, Client(engine.address) as client:
        size = client.stats().facts["loader"]["expert_bytes"]
        assert size == survey_checkpoint(str(tmp_path), dtype="float32", experts_in="packed").expert_bytes
        batch = client.submit(prompts, max_new_tokens=TOKENS, eos_ids=[])
        for stage in ("loader", "compute"):
            await_tokens(batch, 8)
            engine.kill(stage)
        done = batch.results(timeout_s=120)
    reference = Reference(library_model(tmp_path, "float32"))
    assert [list(each.token_ids) for each in done] == [reference.greedy(prompt, TOKENS) for prompt in prompts]
    if record:
        assert_verified(tmp_path)


def assert_verified(folder: Path) -> None:
    """The same bits with everything resident, packed, on the same device (I1a), and the logits of transformers."""
    verification = Verification(folder / "record", str(folder), dtype="float32", device="fake:7", experts_in="packed")
    assert verification.resident().holds and verification.float32().holds


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_auto_has_one_form_at_every_budget_and_its_bits_are_verified(tmp_path: Path) -> None:
    """I1a: a form that followed the budget would bring other kernels, and other bits, with it."""
    save("mxfp4", tmp_path)
    sizes, tokens = set[Any](), []
    for share in ("25%", "100%"):
        config = Config.load(model=tmp_path, expert_memory=share, record=str(tmp_path / share))
        with Supervisor(config) as engine, Client(engine.address) as client:
            sizes.add(client.stats().facts["loader"]["expert_bytes"])
            tokens.append([each.token_ids for each in client.generate(random_prompts(3, VOCABULARY), 6, eos_ids=[])])
        assert next(run_checks(tmp_path / share, config)).holds
    form = packing_choice(Config.load(model=tmp_path)).experts_in
    assert sizes == {survey_checkpoint(str(tmp_path), experts_in=form).expert_bytes} and tokens[0] == tokens[1]

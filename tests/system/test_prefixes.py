"""Shared prefixes and chunks through the scheduler and a real model: tokens as alone (I1b), bits as ordered (I1a)."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from expertflow.ipc.messages import DropPrefix, KeepPrefix, RunStep
from expertflow.runtime.verify.local_runtime import LocalRuntime
from expertflow.tests.models.families import VOCABULARY, save_tiny
from expertflow.tests.system.scheduled import Scheduled, run_again
from expertflow.tests.system.schedules import Digests
from expertflow.workers.predictor.baselines import Previous
from expertflow.workers.scheduler.limits import SchedulerLimits
from expertflow.workers.surveyor.surveyor import survey_checkpoint
from transformers import AutoModelForCausalLM

CHUNK = 32
LIMITS = SchedulerLimits(
    batch_size=6, prefill_tokens=256, prefill_chunk=CHUNK, prefix_cache=True, queue_limit=100, kv_bytes=1_000,
    gather_ns=0,
)  # fmt: skip


def prompts() -> list[list[int]]:
    """Some begin alike, for less than a block, some blocks, more than a chunk; some are shorter than a block."""
    rng = random.Random(4)
    shared = [rng.randrange(3, VOCABULARY) for _ in range(90)]
    lengths = [(90, 5), (90, 1), (64, 40), (20, 3), (0, 70), (90, 35), (70, 2), (0, 6), (90, 5), (33, 1)]
    return [shared[:common] + [rng.randrange(3, VOCABULARY) for _ in range(own)] for common, own in lengths]


@pytest.mark.parametrize("family", ["olmoe", "deepseek_v3", "glm4_moe"])
def test_shared_prefixes_and_chunks_give_the_tokens_of_each_prompt_alone(tmp_path: Path, family: str) -> None:
    """At a quarter of the slots, with so little room that kept prefixes go again; then the same orders resident."""
    save_tiny(family, tmp_path, seed=5)
    survey = survey_checkpoint(str(tmp_path), dtype="float32")
    digests, again = Digests(), Digests()
    with LocalRuntime(survey, survey.expert_count // 4, choose=digests.choose) as runtime:
        engine = Scheduled.of(runtime, Previous(survey.layers, survey.experts, survey.top_k), survey, LIMITS)
        outputs = engine.run(prompts(), [6] * len(prompts()))
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    for prompt, tokens in zip(prompts(), outputs, strict=True):
        with torch.inference_mode():
            logits = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
        assert tokens == logits.argmax(-1).tolist()
    _check_that_it_happened(engine)
    with LocalRuntime(survey, survey.expert_count, choose=again.choose) as runtime:
        run_again(runtime, engine.orders)
    assert again.seen == digests.seen


def _check_that_it_happened(engine: Scheduled) -> None:
    rows = [row for order in engine.orders if isinstance(order, RunStep) for row in order.admit]
    assert max(row.cached for row in rows) >= 64
    assert any(isinstance(order, RunStep) and order.continues for order in engine.orders)
    assert any(isinstance(order, KeepPrefix) for order in engine.orders)
    assert any(isinstance(order, DropPrefix) for order in engine.orders)
    statistics = engine.core.statistics()
    assert statistics.prefix_hits >= 4
    assert statistics.kv_reserved_bytes + statistics.kv_prefix_bytes <= LIMITS.kv_bytes

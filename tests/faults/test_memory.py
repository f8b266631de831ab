"""Compute finds no memory in the middle of its work: a typed error for what does not fit, and the engine goes on."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import pytest
from expertflow import Client, Completion, Config, Supervisor
from expertflow.errors import ExpertFlowError
from expertflow.ipc.stage.entry import unexpected_error
from expertflow.tests.models.families import VOCABULARY, save_tiny
from expertflow.tests.runtime.fakes import wait_until
from expertflow.tests.system.references import Reference, random_prompts

pytestmark = pytest.mark.usefixtures("new_processes")
TOKENS = 8
WIDE: dict[str, Any] = {"hidden_size": 512, "vocab_size": VOCABULARY, "max_position_embeddings": 4096}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_compute_without_memory_fails_requests_and_recovers(tmp_path: Path) -> None:
    """Its address space is limited to what it has; then the limit is lifted."""
    save_tiny("olmoe", tmp_path, **WIDE)
    prompts = [prompt * 40 for prompt in random_prompts(4, VOCABULARY, seed=3)]
    config = Config.load(model=tmp_path, expert_memory="50%", restart_limit=20)
    with Supervisor(config) as engine, Client(engine.address) as client:
        wait_until(lambda: "compute" in engine.snapshot().stages)
        limited = engine.snapshot().stages["compute"].pid
        before = resource.prlimit(limited, resource.RLIMIT_AS, (address_space(limited), resource.RLIM_INFINITY))
        outcomes = client.submit(prompts, max_new_tokens=TOKENS, eos_ids=[]).results(200, return_errors=True)
        lost = engine.snapshot().restarts["compute"]
        failed = [outcome for outcome in outcomes if isinstance(outcome, ExpertFlowError)]
        assert failed or lost, "the limit was none: no test"
        assert all("found no memory" in each.what for each in failed)
        if not lost:
            resource.prlimit(limited, resource.RLIMIT_AS, before)
        done = client.submit(prompts, max_new_tokens=TOKENS, eos_ids=[]).results(200)
        assert engine.failure is None
    reference = Reference(tmp_path)
    right = [reference.greedy(prompt, TOKENS) for prompt in prompts]
    assert [list(each.token_ids) for each in done] == right
    for outcome, expected in zip(outcomes, right, strict=True):
        assert not isinstance(outcome, Completion) or list(outcome.token_ids) == expected


@pytest.mark.parametrize(
    ("error", "short"),
    [
        (MemoryError(), True),
        (OSError(12, "Cannot allocate memory"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1"), True),
        (OSError(5, "Input/output error"), False),
        (ValueError("oh no"), False),
    ],
)
def test_a_stage_that_ran_out_of_memory_says_so(error: Exception, short: bool) -> None:
    """Anything else that nobody caught is called a bug."""
    told = unexpected_error(error, "loader", tells_all=True)
    assert (told.what == "ran out of memory") == short and ("bug" in told.remedy) != short


def address_space(pid: int) -> int:
    """Bytes of the address space of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
    return pages * resource.getpagesize()

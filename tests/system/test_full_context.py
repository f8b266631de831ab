"""A request of the greatest length in every row of an engine: prompt and output fill the model's context."""

from __future__ import annotations

from pathlib import Path

import pytest
from expertflow import Client, Config, Supervisor
from expertflow.errors import BudgetError, RequestError
from expertflow.tests.models.families import VOCABULARY, save_tiny
from expertflow.tests.system.references import Reference
from expertflow.workers.surveyor.surveyor import survey_checkpoint

CONTEXT, ROWS, OUTPUT = 40, 3, 12
PROMPTS = [
    [3 + (7 * row + 5 * place) % (VOCABULARY - 3) for place in range(CONTEXT - OUTPUT + 1)] for row in range(ROWS)
]
SHARES = ["all rows", *(pytest.param(each, marks=pytest.mark.slow) for each in ("one row", "less than a row"))]


@pytest.mark.parametrize("share", SHARES)
def test_rows_that_fill_the_context_are_exact_or_refused(share: str, tmp_path: Path) -> None:
    """All at once where memory holds them, in turn where it holds one, and refused where it holds none."""
    save_tiny("olmoe", tmp_path, max_position_embeddings=CONTEXT)
    rows = survey_checkpoint(str(tmp_path), dtype="float32").rows
    row_bytes = CONTEXT * rows.kv_bytes_per_position + rows.kv_bytes_per_row
    kv_bytes = {"all rows": ROWS * row_bytes, "one row": row_bytes, "less than a row": row_bytes - 1}[share]
    config = Config.load(model=tmp_path, expert_memory="25%", kv_memory=f"{kv_bytes}B", batch_size=ROWS)
    with Supervisor(config) as engine, Client(engine.address) as client:
        batch = client.submit(PROMPTS, max_new_tokens=10 * CONTEXT, eos_ids=[])
        if share == "less than a row":
            refused = batch.results(timeout_s=120, return_errors=True)
            assert {type(each) for each in refused} == {BudgetError}, refused
            assert all(f"{row_bytes:,}" in str(each) for each in refused), refused
            assert len(client.generate([PROMPTS[0]], OUTPUT - 1, eos_ids=[])[0].token_ids) == OUTPUT - 1
            return
        done = batch.results(timeout_s=120)
        (beyond,) = client.submit([[5] * (CONTEXT + 1)], max_new_tokens=1).results(timeout_s=60, return_errors=True)
        statistics = client.stats()
        assert sum(statistics.restarts.values()) == 0
    assert isinstance(beyond, RequestError) and not isinstance(beyond, BudgetError)
    reference = Reference(tmp_path)
    assert [list(each.token_ids) for each in done] == [reference.greedy(prompt, OUTPUT) for prompt in PROMPTS]
    assert {each.finish_reason for each in done} == {"length"}

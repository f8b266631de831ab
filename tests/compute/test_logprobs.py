"""Log-probabilities against torch's own, their ranks, and an order that does not depend on a sort."""

from __future__ import annotations

import pytest
import torch
from expertflow.workers.compute.sampling import logprobs
from expertflow.workers.compute.sampling.logprobs import token_logprobs

VOCABULARY = 50


def logits(rows: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (5 * torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(rows))).to(dtype)


@pytest.mark.parametrize("size", [1, 3 * VOCABULARY, 2**20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_entries_are_those_of_a_log_softmax(size: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many tokens are in float64 at a time."""
    monkeypatch.setattr(logprobs, "MAX_ELEMENTS", size)
    rows, tokens, counts = logits(7, dtype), [0, 3, 9, 3, 49, 8, 1], [0, 1, 5, 20, 50, 60, 2]
    expected = rows.double().log_softmax(-1)
    for entry, own, token, count in zip(token_logprobs(rows, tokens, counts), expected, tokens, counts, strict=True):
        assert entry.token_id == token and len(entry.top) == min(count, VOCABULARY)
        assert entry.logprob == pytest.approx(float(own[token]), abs=1e-12)
        assert entry.rank == 1 + sum(value > float(own[token]) for value in own.tolist())
        assert [value for _, value in entry.top] == pytest.approx(own.sort(descending=True).values[:count].tolist())
        assert [value for _, value in entry.top] == pytest.approx([float(own[id]) for id, _ in entry.top])


def test_equal_logits_are_ordered_by_id() -> None:
    """In bfloat16 many are; which of them are told must not depend on the device."""
    row = torch.zeros(1, VOCABULARY)
    row[0, [40, 7]] = 1.0
    (entry,) = token_logprobs(row, [9], [5])
    assert [id for id, _ in entry.top] == [7, 40, 0, 1, 2] and entry.rank == 3


def test_a_banned_token_has_no_probability() -> None:
    row = logits(1)
    row[0, 4] = -torch.inf
    (entry,) = token_logprobs(row, [4], [2])
    assert entry.logprob == -torch.inf and entry.rank == VOCABULARY

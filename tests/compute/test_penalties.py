"""Penalties, biases and masks: transformers' own processors, or the definition written out token by token."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest
import torch
from expertflow.ipc.messages import NEUTRAL, GenerationSettings, Sampling
from expertflow.workers.compute.sampling.choose import choose_all
from expertflow.workers.compute.sampling.penalties import is_neutral, penalise
from expertflow.workers.model.processors import TokenHistory
from expertflow.workers.scheduler.request_frontend import own_settings
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import MinNewTokensLengthLogitsProcessor, RepetitionPenaltyLogitsProcessor

VOCABULARY = 40
EOS = (2, 5)
IDS = st.lists(st.integers(0, 11), max_size=30)


def logits(seed: int = 0) -> Tensor:
    return 3 * torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(seed))


def history_of(prompt: Sequence[int], output: Sequence[int], own: GenerationSettings = NEUTRAL) -> TokenHistory:
    return TokenHistory(own, [*prompt, *output], len(output), prompt)


def by_definition(row: Tensor, prompt: list[int], output: list[int], sampling: Sampling) -> Tensor:
    """Bias, transformers' repetition penalty, then the formula of OpenAI's reference, a token at a time."""
    scores = row.clone()
    for token, bias in sampling.logit_bias.items():
        scores[token] += bias
    if sampling.repetition_penalty is not None:
        ids = torch.tensor([[*prompt, *output]])
        scores = RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty)(ids, scores[None])[0]  # pyright: ignore[reportArgumentType]
    for token, count in Counter(output).items():
        scores[token] -= sampling.frequency_penalty * count + sampling.presence_penalty * (count > 0)
    return scores


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    prompt=st.lists(st.integers(0, 11), min_size=1, max_size=20),
    output=IDS,
    repetition=st.none() | st.floats(0.2, 3.0),
    presence=st.floats(-2.0, 2.0),
    frequency=st.floats(-2.0, 2.0),
    bias=st.dictionaries(st.integers(0, VOCABULARY - 1), st.floats(-100, 100), max_size=5),
)
def test_penalties_are_what_their_definition_says(
    seed: int, prompt: list[int], output: list[int], repetition: float | None, presence: float, frequency: float,
    bias: dict[int, float],
) -> None:  # fmt: skip
    sampling = Sampling(
        repetition_penalty=repetition, presence_penalty=presence, frequency_penalty=frequency, logit_bias=bias
    )
    row, own = logits(seed), own_settings(NEUTRAL, EOS, 100, sampling)
    ours = penalise(row, sampling, history_of(prompt, output, own))
    torch.testing.assert_close(ours, by_definition(row, prompt, output, sampling), rtol=1e-5, atol=1e-5)
    assert torch.equal(row, logits(seed)), "the logits of the model were changed"


@pytest.mark.parametrize("generated", range(5))
def test_nothing_ends_an_output_before_its_minimum(generated: int) -> None:
    """Ends of text are banned as transformers bans them, and the request's own ends with them."""
    prompt, output, row = [7, 8], [9] * generated, logits(1)
    own = own_settings(NEUTRAL, (*EOS, 13), 100, Sampling(min_new_tokens=3))
    theirs = MinNewTokensLengthLogitsProcessor(len(prompt), 3, [*EOS, 13])
    expected = theirs(torch.tensor([[*prompt, *output]]), row[None].clone())[0]  # pyright: ignore[reportArgumentType]
    assert torch.equal(penalise(row, Sampling(), history_of(prompt, output, own)), expected)


def test_a_request_goes_before_the_settings_of_the_model() -> None:
    """Its explicit values, neutral ones too; what it leaves out is the model's."""
    model = GenerationSettings(repetition_penalty=1.3, min_length=9, suppress_tokens=(4,))
    kept = own_settings(model, EOS, 10, Sampling())
    assert (kept.repetition_penalty, kept.min_length, kept.eos_ids) == (1.3, 9, EOS)
    changed = own_settings(model, EOS, 10, Sampling(repetition_penalty=1.0, min_new_tokens=0))
    assert (changed.repetition_penalty, changed.min_length, changed.min_new_tokens) == (1.0, 0, None)
    assert changed.suppress_tokens == (4,)
    assert own_settings(NEUTRAL, EOS, 10, Sampling(repetition_penalty=1.0, min_new_tokens=0)) == NEUTRAL
    assert own_settings(NEUTRAL, EOS, 10, Sampling(min_new_tokens=2)).min_new_tokens == 2


class _Ban:
    """A mask that remembers what it was given, and bans some tokens."""

    def __init__(self, *banned: int) -> None:
        self.banned, self.seen = list(banned), list[tuple[Tensor, list[int]]]()

    def apply(self, scores: Tensor, output_ids: Sequence[int]) -> Tensor:
        self.seen.append((scores.clone(), list(output_ids)))
        return scores.index_fill(0, torch.tensor(self.banned), -torch.inf)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.0, top_k=1, seed=3)], ids=["greedy", "sampled"])
def test_a_mask_comes_after_penalties_and_before_top_k(sampling: Sampling) -> None:
    """A mask after top-k would leave nothing where the likeliest token is banned."""
    row = logits(2)
    best, second = row.argsort(descending=True)[:2].tolist()
    biased = Sampling(sampling.temperature, sampling.top_k, seed=3, logit_bias={best: 1.0})
    mask, past = _Ban(best), [history_of([1], [6, 7])] * 2
    chosen = choose_all(torch.stack([row, row]), [biased, sampling], [2, 2], past, [mask, None])
    assert chosen == [second, best]
    (scores, output), *more = mask.seen
    assert output == [6, 7] and not more and float(scores[best] - row[best]) == pytest.approx(1.0)


def test_neutral_rows_are_left_alone() -> None:
    """All rows of most batches are: their logits must not be copied one by one."""
    row, past = logits(3), history_of([1], [6])
    assert penalise(row, Sampling(0.7, 5, 0.9, min_p=0.1), past) is row
    for sampling in (Sampling(logit_bias={1: 0.5}), Sampling(presence_penalty=0.1), Sampling(frequency_penalty=-0.1)):
        assert not is_neutral(sampling, past)
    assert not is_neutral(Sampling(), history_of([1], [6], GenerationSettings(repetition_penalty=1.1)))

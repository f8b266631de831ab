"""Generation settings: each changes logits exactly as transformers' own processor does."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest
import torch
from expertflow.ipc.messages import GenerationSettings, Sampling
from expertflow.tests.models.families import tiny_model
from expertflow.tests.models.switch import tiny_switch
from expertflow.workers.compute.sampling.choose import choose_all
from expertflow.workers.model.processors import TokenHistory, apply_settings
from torch import Tensor
from transformers import GenerationConfig

VOCABULARY = 40
EOS = (2, 5)
NEW_TOKENS = 9

SETTINGS: dict[str, dict[str, Any]] = {
    "repetition_penalty": {"repetition_penalty": 1.3},
    "encoder_repetition_penalty": {"encoder_repetition_penalty": 0.7},
    "sequence_bias": {"sequence_bias": [[[7], 2.5], [[7, 8], -1.5], [[1, 7, 8], 0.25], [[3, 8], 4.0], [[9], -9.0]]},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 2},
    "no_repeat_unigram": {"no_repeat_ngram_size": 1},
    "encoder_no_repeat_ngram_size": {"encoder_no_repeat_ngram_size": 3},
    "bad_words_ids": {"bad_words_ids": [[7], [2], [7, 8], [1, 2, 3], [8, 7]]},
    "min_length": {"min_length": 12},
    "min_new_tokens": {"min_new_tokens": 3, "min_length": 100},
    "forced_bos_token_id": {"forced_bos_token_id": 11},
    "forced_eos_token_id": {"forced_eos_token_id": [5, 2]},
    "remove_invalid_values": {"remove_invalid_values": True},
    "exponential_decay_length_penalty": {"exponential_decay_length_penalty": [2, 1.7]},
    "suppress_tokens": {"suppress_tokens": [0, 3, 39, 1000]},
    "begin_suppress_tokens": {"begin_suppress_tokens": [1, 6]},
    "second_suppressed": {"begin_suppress_tokens": [1, 6], "forced_bos_token_id": 11},
    "renormalize_logits": {"renormalize_logits": True},
}
SETTINGS["all"] = {name: value for each in SETTINGS.values() for name, value in each.items()}


def settings_of(stated: dict[str, Any], eos: tuple[int, ...] = EOS) -> GenerationSettings:
    given = msgspec.convert(stated | {"eos_ids": eos}, GenerationSettings)
    return msgspec.structs.replace(given, max_new_tokens=NEW_TOKENS)


def theirs(model: Any, stated: dict[str, Any], history: TokenHistory, scores: Tensor) -> Tensor:
    """What `generate` makes of float32 scores [vocabulary], step by step as its greedy decoding does."""
    config = GenerationConfig(**stated, eos_token_id=list(EOS), max_new_tokens=NEW_TOKENS, decoder_start_token_id=0)
    model._prepare_special_tokens(config, device="cpu")
    model._prepare_generated_length(config, True, True, "input_ids", history.start, torch.zeros(1))
    ids = torch.tensor([list(history.ids)])
    processors = model._get_logits_processor(
        config,
        history.start,
        torch.tensor([list(history.source_ids)]),
        device="cpu",
        model_kwargs={"attention_mask": torch.ones(1, history.start, dtype=torch.long)},
    )
    return processors(ids, scores[None].clone())[0]


def histories(rng: random.Random, settings: GenerationSettings, has_encoder: bool) -> list[TokenHistory]:
    """Prompts of few different tokens, so that much is repeated; some of one token alone."""
    made: list[TokenHistory] = []
    for generated in (0, 1, 2, 3, 5, NEW_TOKENS - 1):
        for length in (1, 4, 11):
            prompt = [rng.choice((1, 2, 3, 7, 8, 9)) for _ in range(length)]
            output = [rng.choice((1, 2, 3, 7, 8, 9)) for _ in range(generated)]
            ids = [0, *output] if has_encoder else prompt + output
            made.append(TokenHistory(settings, ids, generated, prompt))
    return made


@pytest.fixture(scope="module")
def models() -> dict[bool, Any]:
    return {False: tiny_model("mixtral"), True: tiny_switch()}


@pytest.mark.parametrize("has_encoder", [False, True])
@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.filterwarnings("ignore")
def test_logits_are_those_of_transformers(name: str, has_encoder: bool, models: dict[bool, Any]) -> None:
    """Bit by bit, at every place of an output."""
    stated, generator = SETTINGS[name], torch.Generator().manual_seed(1)
    changed = 0
    for history in histories(random.Random(name), settings_of(stated), has_encoder):
        scores = torch.randn(VOCABULARY, generator=generator) * 4
        if stated.get("remove_invalid_values"):
            scores[[4, 12, 13]] = torch.tensor([float("nan"), float("inf"), float("-inf")])
        ours, reference = apply_settings(scores.clone(), history), theirs(models[has_encoder], stated, history, scores)
        torch.testing.assert_close(ours, reference, rtol=0, atol=0, equal_nan=True)
        changed += not torch.equal(ours, scores)
    assert changed


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rows_keep_their_own_settings(temperature: float) -> None:
    """A token depends on its own row alone, and a row without settings on none."""
    rows = torch.randn(6, VOCABULARY, generator=torch.Generator().manual_seed(2))
    samplings = [Sampling(temperature, seed=number) for number in range(6)]
    names = ["repetition_penalty", "suppress_tokens", "no_repeat_unigram", "bad_words_ids", "min_length"]
    settings = [GenerationSettings(), *(settings_of(SETTINGS[name]) for name in names)]
    past = [TokenHistory(each, [1, 7, 8, 7], 2, [1, 7]) for each in settings]
    together = choose_all(rows, samplings, [2] * 6, past)
    alone = [choose_all(rows[n : n + 1], samplings[n : n + 1], [2], past[n : n + 1])[0] for n in range(6)]
    assert together == alone
    assert together[0] == choose_all(rows[:1], samplings[:1], [2])[0]


def test_a_broken_row_fails_alone_unless_its_settings_mend_it() -> None:
    """`remove_invalid_values` is there for such models."""
    rows = torch.full((2, VOCABULARY), float("nan"))
    rows[:, 3] = 1.0
    past = [TokenHistory(GenerationSettings(remove_invalid_values=mended), [1], 0, [1]) for mended in (False, True)]
    broken, mended = choose_all(rows, [Sampling()] * 2, [0, 0], past)
    assert not isinstance(broken, int) and mended == 3


def test_without_ends_nothing_is_done_to_them() -> None:
    """A request that never stops has no end to wait for."""
    scores = torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(3))
    history = TokenHistory(settings_of(SETTINGS["min_new_tokens"], eos=()), [1], 0, [1])
    assert torch.equal(apply_settings(scores, history), scores)

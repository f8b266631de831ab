"""Changes logits as a model's generation settings ask for: pure functions of the prompt and the tokens so far.

Meaning and order are those of transformers' logits processors (generation/logits_process.py), which greedy `generate`
applies in float32. A new one is a line in `_PROCESSORS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ...ipc.messages import NEUTRAL, GenerationSettings


@dataclass(frozen=True, slots=True)
class TokenHistory:
    """Tokens and settings on which the next token of a row may depend."""

    settings: GenerationSettings
    ids: Sequence[int]
    """Ids given to the decoder, oldest first: with an encoder its start and the output, else prompt and output."""
    generated: int
    """Number of ids at the end that were generated."""
    source_ids: Sequence[int]
    """The prompt."""

    @property
    def start(self) -> int:
        """Return how many ids come before the output."""
        return len(self.ids) - self.generated

    @property
    def output_ids(self) -> Sequence[int]:
        """Return the ids that were generated."""
        return self.ids[self.start :]


def apply_settings(logits: Tensor, history: TokenHistory) -> Tensor:
    """Return the logits [vocabulary] of one row as its settings change them: float32 on the CPU, or as they are."""
    settings = history.settings
    if settings == NEUTRAL:
        return logits
    scores = logits.float().cpu()
    for is_set, process in _PROCESSORS:
        if is_set(settings):
            scores = process(scores, history)
    return scores


def _bias_sequences(scores: Tensor, history: TokenHistory) -> Tensor:
    return _add_biases(scores, history, history.settings.sequence_bias)


def _ban_words(scores: Tensor, history: TokenHistory) -> Tensor:
    settings = history.settings
    ends = {(token,) for token in settings.eos_ids}
    return _add_biases(scores, history, _bans(settings.bad_words_ids, frozenset(ends)))


def _add_biases(scores: Tensor, history: TokenHistory, biases: tuple[tuple[tuple[int, ...], float], ...]) -> Tensor:
    """Add each bias to the last token of its sequence, where the tokens so far end with the others of it."""
    single, longer = _biases_by_length(biases, len(scores))
    bias = single.clone()
    for length, table in longer.items():
        for token, value in table.get(tuple(history.ids[-length:]), ()):
            bias[token] += value
    return scores + bias


_Longer = dict[int, dict[tuple[int, ...], list[tuple[int, float]]]]


@lru_cache(maxsize=16)
def _biases_by_length(biases: tuple[tuple[tuple[int, ...], float], ...], vocabulary: int) -> tuple[Tensor, _Longer]:
    """Return the biases float32 [vocabulary] of lone tokens; of longer ones by length of prefix, then by prefix."""
    single, longer = torch.zeros(vocabulary), _Longer()
    for sequence, value in dict(biases).items():
        *prefix, token = sequence
        if prefix:
            longer.setdefault(len(prefix), {}).setdefault(tuple(prefix), []).append((token, value))
        else:
            single[token] = value
    return single, longer


@lru_cache(maxsize=16)
def _bans(words: tuple[tuple[int, ...], ...], ends: frozenset[tuple[int]]) -> tuple[tuple[tuple[int, ...], float], ...]:
    return tuple((word, -math.inf) for word in words if word not in ends)


def _reward_source(scores: Tensor, history: TokenHistory) -> Tensor:
    return _penalise(scores, history.source_ids, 1 / history.settings.encoder_repetition_penalty)


def _penalise_repetition(scores: Tensor, history: TokenHistory) -> Tensor:
    return _penalise(scores, history.ids, history.settings.repetition_penalty)


def _penalise(scores: Tensor, ids: Sequence[int], penalty: float) -> Tensor:
    """Make each of these tokens less likely, once however often it occurs."""
    seen = torch.tensor([token for token in set(ids) if token < len(scores)], dtype=torch.long)
    old = scores[seen]
    return scores.index_put((seen,), torch.where(old < 0, old * penalty, old / penalty))


def _ban_repeated_ngrams(scores: Tensor, history: TokenHistory) -> Tensor:
    return _ban(scores, _followers(history.ids, history.ids, history.settings.no_repeat_ngram_size))


def _ban_source_ngrams(scores: Tensor, history: TokenHistory) -> Tensor:
    return _ban(scores, _followers(history.source_ids, history.ids, history.settings.encoder_no_repeat_ngram_size))


def _followers(text: Sequence[int], ids: Sequence[int], size: int) -> set[int]:
    """Return the tokens of `text` that follow the last size - 1 of `ids` there."""
    if len(ids) < size - 1:
        return set()
    prefix = list(ids[len(ids) - size + 1 :])
    starts = range(len(text) - size + 1)
    return {text[start + size - 1] for start in starts if list(text[start : start + size - 1]) == prefix}


def _require_length(scores: Tensor, history: TokenHistory) -> Tensor:
    settings = history.settings
    if settings.min_new_tokens is None:
        short = len(history.ids) < settings.min_length
    else:
        short = history.generated < settings.min_new_tokens
    return _ban(scores, settings.eos_ids) if short else scores


def _force_first(scores: Tensor, history: TokenHistory) -> Tensor:
    bos = history.settings.forced_bos_token_id
    return _force(scores, (bos,)) if len(history.ids) == 1 and bos is not None else scores


def _force_last(scores: Tensor, history: TokenHistory) -> Tensor:
    settings = history.settings
    is_last = history.generated == settings.max_new_tokens - 1
    return _force(scores, settings.forced_eos_token_id) if is_last else scores


def _force(scores: Tensor, tokens: Sequence[int]) -> Tensor:
    forced = torch.full_like(scores, -math.inf)
    forced[list(tokens)] = 0
    return forced


def _remove_invalid(scores: Tensor, history: TokenHistory) -> Tensor:
    limits = torch.finfo(scores.dtype)
    return scores.nan_to_num(0.0, limits.max, limits.min)


def _favour_the_end(scores: Tensor, history: TokenHistory) -> Tensor:
    """Raise the ends of text exponentially from some length of the output on."""
    begin, factor = history.settings.exponential_decay_length_penalty or (0, 1.0)
    late = history.generated - begin
    ends = torch.tensor([token for token in history.settings.eos_ids if token < len(scores)], dtype=torch.long)
    if late <= 0:
        return scores
    raised = scores[ends].abs() * (factor**late - 1)
    return scores.index_put((ends,), scores[ends] + raised.masked_fill(~scores[ends].isfinite(), 0.0))


def _suppress(scores: Tensor, history: TokenHistory) -> Tensor:
    return _ban(scores, history.settings.suppress_tokens)


def _suppress_first(scores: Tensor, history: TokenHistory) -> Tensor:
    """Ban tokens from the first place of the output, or from the second where the first is forced."""
    settings = history.settings
    second = history.start <= 1 and settings.forced_bos_token_id is not None
    return _ban(scores, settings.begin_suppress_tokens) if history.generated == int(second) else scores


def _ban(scores: Tensor, tokens: Sequence[int] | set[int]) -> Tensor:
    """Make tokens impossible; ids outside of the vocabulary are impossible already."""
    indices = torch.tensor([token for token in tokens if 0 <= token < len(scores)], dtype=torch.long)
    return scores.index_fill(0, indices, -math.inf)


def _normalise(scores: Tensor, history: TokenHistory) -> Tensor:
    return scores.log_softmax(dim=-1)


_PROCESSORS: tuple[tuple[Callable[[GenerationSettings], bool], Callable[[Tensor, TokenHistory], Tensor]], ...] = (
    (lambda settings: bool(settings.sequence_bias), _bias_sequences),
    (lambda settings: settings.encoder_repetition_penalty != 1, _reward_source),
    (lambda settings: settings.repetition_penalty != 1, _penalise_repetition),
    (lambda settings: settings.no_repeat_ngram_size > 0, _ban_repeated_ngrams),
    (lambda settings: settings.encoder_no_repeat_ngram_size > 0, _ban_source_ngrams),
    (lambda settings: bool(settings.bad_words_ids), _ban_words),
    (lambda settings: bool(settings.min_length or settings.min_new_tokens), _require_length),
    (lambda settings: settings.forced_bos_token_id is not None, _force_first),
    (lambda settings: bool(settings.forced_eos_token_id), _force_last),
    (lambda settings: settings.remove_invalid_values, _remove_invalid),
    (lambda settings: settings.exponential_decay_length_penalty is not None, _favour_the_end),
    (lambda settings: bool(settings.suppress_tokens), _suppress),
    (lambda settings: bool(settings.begin_suppress_tokens), _suppress_first),
    (lambda settings: settings.renormalize_logits, _normalise),
)
"""Test whether a setting is set, and the processor for it; in transformers' order."""

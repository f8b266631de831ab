"""Penalties and biases of a request: pure functions of the prompt and the tokens so far.

Order: the request's `logit_bias`; then the generation settings (model/processors.py), among them `repetition_penalty`
and `min_new_tokens`; then presence and frequency. vLLM has the same order, transformers has no more than the settings.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ....ipc.messages import NEUTRAL, Sampling
from ...model.processors import TokenHistory, apply_settings


def is_neutral(sampling: Sampling, history: TokenHistory | None) -> bool:
    """Return whether nothing changes the logits of a row before temperature, top-k, top-p and min-p."""
    if sampling.logit_bias or sampling.presence_penalty or sampling.frequency_penalty:
        return False
    return history is None or history.settings == NEUTRAL


def penalise(logits: Tensor, sampling: Sampling, history: TokenHistory | None) -> Tensor:
    """Return the logits [vocabulary] of one row as request and model ask for: float32 on the CPU, or as they are.

    Without a history the output counts as empty, and the model as one without settings.
    """
    if is_neutral(sampling, history):
        return logits
    scores = logits.float().cpu()
    if sampling.logit_bias:
        scores = _add_biases(scores, sampling.logit_bias)
    if history is None:
        return scores
    scores = apply_settings(scores, history)
    if sampling.presence_penalty or sampling.frequency_penalty:
        scores = _penalise_output(scores, history.output_ids, sampling)
    return scores


def _add_biases(scores: Tensor, biases: dict[int, float]) -> Tensor:
    ids, values = torch.tensor(list(biases)), torch.tensor(list(biases.values()), dtype=scores.dtype)
    return scores.index_add(0, ids, values)


def _penalise_output(scores: Tensor, output_ids: Sequence[int], sampling: Sampling) -> Tensor:
    """Subtract `frequency_penalty` for each time that a token is in the output, and `presence_penalty` once.

    Tokens of the prompt do not count. Source: the formula of OpenAI's API reference, as in vLLM's `apply_penalties`.
    """
    if not output_ids:
        return scores
    ids, counts = np.unique(np.asarray(output_ids), return_counts=True)
    weights = counts * sampling.frequency_penalty + sampling.presence_penalty
    return scores.index_add(0, torch.from_numpy(ids), torch.from_numpy(-weights).to(scores.dtype))

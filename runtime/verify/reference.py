"""transformers' own logits, each sequence alone and unpadded, teacher-forced."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
import torch
from transformers import AutoModelForCausalLM


class Sequence(msgspec.Struct):
    """One recorded sequence: its prompt, what was generated, and our logits for each generated position."""

    prompt_ids: list[int]
    token_ids: list[int]
    logits: list[torch.Tensor]


def reference_logits(folder: str, dtype: torch.dtype, sequences: Iterable[Sequence]) -> list[torch.Tensor]:
    """For each sequence float32 [generated, vocabulary]: what transformers says at the positions that were
    generated."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, experts_implementation="eager").eval()
    answers = []
    with torch.inference_mode():
        for sequence in sequences:
            ids = torch.tensor([sequence.prompt_ids + sequence.token_ids[:-1]])
            logits = model(ids).logits[0, len(sequence.prompt_ids) - 1 :]
            answers.append(logits.float())
    return answers

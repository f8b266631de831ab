"""What all contenders of a comparison run: random prompts, or text for a cold engine and then for a warm one."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

from ..contender.order import Case
from ..models import held_out_prompts

PROMPT = 32
CHARACTERS = 400
"""Of text, for more than a prompt's tokens."""
COLD, WARM = "cold", "warm"


def random_cases(model: Path, batches: Sequence[int], steps: int) -> list[Case]:
    """One a batch size, of random token ids; the same ones at every call."""
    vocabulary = json.loads((model / "config.json").read_text())["vocab_size"]
    rng = random.Random(0)
    return [
        Case(prompts=[[rng.randrange(3, vocabulary) for _ in range(PROMPT)] for _ in range(batch)], steps=steps)
        for batch in batches
    ]


def text_cases(model: Path, batches: Sequence[int], cold_steps: int, warm_steps: int) -> list[Case]:
    """Two a batch size, to be run in this order right after a start: the first one finds a cold engine, the second one,
    other prompts, a warm one. The same ones at every call."""
    cases = []
    for batch in batches:
        prompts = _text_prompts(model, 2 * batch)
        cases += [
            Case(prompts=prompts[:batch], steps=cold_steps, state=COLD, trial=False),
            Case(prompts=prompts[batch:], steps=warm_steps, state=WARM, trial=False, seed=8),
        ]
    return cases


def _text_prompts(model: Path, count: int) -> list[list[int]]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    return [tokenizer.encode(text).ids[:PROMPT] for text in held_out_prompts(count, CHARACTERS)]

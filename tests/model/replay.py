"""Runs rows through units and remembers the logits each of them saw, to compare with the row alone and unpadded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from expertflow.ipc.messages import RequestRow, Sampling
from expertflow.tests.models.families import tiny_model
from expertflow.workers.compute.sampling.choose import choose_all
from expertflow.workers.compute.sampling.failure import RowFailed
from expertflow.workers.model.cache_blocks import RowPrefix
from expertflow.workers.model.families.llama4 import temper_by_position
from expertflow.workers.model.unit import RowAbilities, Unit
from torch import Tensor

PROMPT_LENGTHS = (5, 17, 11, 23, 3, 9)
TOLERANCE = 1e-4
"""I1b: of the largest logit, float32."""


def prompts(seed: int, lengths: Sequence[int] = PROMPT_LENGTHS) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, 128, (length,), generator=generator).tolist() for length in lengths]


def model_to_run(family: str) -> Any:
    """A tiny model whose attention is as compute runs it."""
    model = tiny_model(family)
    temper_by_position(model)
    return model


@dataclass
class Replay:
    """Greedy rows in units of `model`; `seen[row, length]` are the logits after `length` tokens of that row."""

    model: Any
    texts: list[list[int]]
    abilities: RowAbilities = RowAbilities()
    seen: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    reference: Any = None
    """The library's own model, where `model` was changed."""

    @classmethod
    def of(cls, family: str, texts: list[list[int]], abilities: RowAbilities | None = None) -> Replay:
        """A tiny model as rows see it when it is run, against the untouched one."""
        return cls(model_to_run(family), texts, abilities or RowAbilities(), reference=tiny_model(family))

    def start(self, *numbers: int, chunk: int = 0, prefixes: Sequence[RowPrefix] = ()) -> Unit:
        unit = Unit(self.model.config, self.abilities)
        rows = [RequestRow(number, self.texts[number], 0, Sampling(), chunk=chunk) for number in numbers]
        logits = unit.run(self.model, unit.prepare_prefill(rows, prefixes=prefixes))
        while unit.filling:
            logits = unit.run(self.model, unit.prepare_step())
        self._choose(unit, logits)
        return unit

    def step(self, unit: Unit, times: int = 1) -> None:
        for _ in range(times):
            self._choose(unit, unit.run(self.model, unit.prepare_step()))

    def _choose(self, unit: Unit, logits: Tensor) -> None:
        for row, each in zip(unit.rows, logits, strict=True):
            self.seen[row.number, len(row.token_ids)] = each.clone()
        chosen = choose_all(logits, unit.samplings, unit.output_indices)
        unit.append([token for token in chosen if not isinstance(token, RowFailed)])
        for row in unit.rows:
            self.texts[row.number] = list(row.token_ids)

    def alone(self, number: int) -> Tensor:
        """Logits [tokens, vocabulary] of transformers on this row, teacher-forced."""
        model = self.reference or self.model
        return model(input_ids=torch.tensor([self.texts[number]])).logits[0]

    def compare(self) -> tuple[float, int]:
        """Largest error as a fraction of the largest logit, and how many greedy tokens differ."""
        worst, differing = 0.0, 0
        for number, text in enumerate(self.texts):
            alone = self.alone(number)
            for length in [length for row, length in self.seen if row == number]:
                error = (self.seen[number, length] - alone[length - 1]).abs().max() / alone.abs().max()
                worst = max(worst, float(error.nan_to_num(nan=float("inf"))))
                differing += int(alone[length - 1].argmax()) != text[length]
        return worst, differing


def a_life(replay: Replay) -> None:
    """Six rows that join and leave: shorter and longer than the unit, past the windows, split and joined again."""
    unit = replay.start(0, 1, 2)
    replay.step(unit, 2)
    unit.join(replay.start(3))
    replay.step(unit, 2)
    unit.drop([1])
    unit.join(replay.start(4, 5))
    replay.step(unit, 2)
    half = unit.split([5, 2])
    replay.step(unit)
    replay.step(half, 2)
    half.join(unit)
    replay.step(half)
    half.drop([3])
    replay.step(half, 2)
    half.take([4, 0])
    replay.step(half, 8)


Life = Callable[[Replay], None]

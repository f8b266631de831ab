"""One tiny model of an architecture through the parts of the real processes, and what came of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from expertflow.ipc.messages import Details, RequestRow, RunStep, Sampling
from expertflow.runtime.verify.local_runtime import LocalRuntime
from expertflow.tests.system.schedules import Driver, Sequence
from expertflow.workers.checkpoint.survey import Survey
from expertflow.workers.compute.executor import sample
from expertflow.workers.compute.recording import digest_rows
from expertflow.workers.model.architecture import experts_modules
from expertflow.workers.model.unit import RowAbilities, Unit
from torch import Tensor

TOLERANCE = 1e-4
"""I1b: of the largest logit, float32."""

CAUGHT = 50 * TOLERANCE
"""What a mutant must cost at least."""

Mutation = Callable[[LocalRuntime], None]


@dataclass
class Life:
    """What a model did over one schedule."""

    digests: list[bytes] = field(default_factory=list)
    seen: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    """Logits [vocabulary] of a row after so many of its tokens."""
    sequences: dict[int, Sequence] = field(default_factory=dict)
    costs: list[tuple[int, int]] = field(default_factory=list)
    """Bytes that the cache held, and how many the survey promised at most."""
    hints: str = ""
    """Which layers can be asked ahead: all, some or none."""

    def choose(self, step: RunStep, unit: Unit, logits: Tensor) -> Any:
        """A chooser that remembers what it sees."""
        self.digests.append(digest_rows(logits))
        for row, each in zip(unit.rows, logits, strict=True):
            self.seen[row.number, len(row.token_ids)] = each.clone()
        return sample(step, unit, logits)

    def error(self, reference: Any) -> float:
        """Largest difference to transformers on each row alone, unpadded, without a cache; of its largest logit."""
        errors = [0.0]
        for number, sequence in self.sequences.items():
            ids = torch.tensor([sequence.prompt_ids + sequence.token_ids])
            alone = reference(input_ids=ids).logits[0]
            mine = [(length, logits) for (row, length), logits in self.seen.items() if row == number]
            errors += [float((alone[length - 1] - logits).abs().max() / alone.abs().max()) for length, logits in mine]
        return max(errors, key=lambda error: (error != error, error))

    def other_tokens(self, reference: Any) -> int:
        """How many greedy tokens transformers chooses otherwise."""
        count = 0
        for sequence in self.sequences.values():
            whole = sequence.prompt_ids + sequence.token_ids
            alone = reference(input_ids=torch.tensor([whole])).logits[0, len(sequence.prompt_ids) - 1 : -1]
            count += int((alone.argmax(-1) != torch.tensor(sequence.token_ids)).sum())
        return count


@torch.inference_mode()
def live(survey: Survey, slots: int, mutation: Mutation | None = None) -> Life:
    """Rows that are padded, joined, taken and split as far as they can be, over so many expert slots."""
    life = Life()
    abilities = RowAbilities.of(survey.rows)
    with LocalRuntime(survey, slots, abilities, life.choose) as runtime:
        if mutation is not None:
            mutation(runtime)
        driver = Driver(runtime, survey.vocabulary, life.sequences)
        _drive(driver, abilities, lambda: life.costs.append(_cost(runtime, survey)))
        _, first = next(iter(experts_modules(runtime.model)))
        refusals = len(first.expertflow_layer.hinter._source.refusals)  # pyright: ignore
        life.hints = "all" if not refusals else "some" if refusals < survey.layers - 1 else "none"
    return life


@torch.inference_mode()
def prompt_error(model: Any, vocabulary: int) -> float:
    """Largest difference between logits of a prompt, made of kept hidden states, and the model's own; as above."""
    ids = torch.randint(3, vocabulary, (9,), generator=torch.Generator().manual_seed(2))
    unit = Unit(model.config)
    row = RequestRow(0, ids.tolist(), 0, Sampling(), details=Details(prompt_logprobs=0))
    unit.run(model, unit.prepare_prefill([row]))
    mine, alone = torch.cat(list(unit.prompt_logits(0)[1])), model(input_ids=ids[None]).logits[0, :-1]
    return float((mine - alone).abs().max() / alone.abs().max())


def _drive(driver: Driver, abilities: RowAbilities, look: Callable[[], None]) -> None:
    """Prompts shorter than a convolution and longer than any window, if they may differ."""
    lengths = [(2, 13, 9), (15, 5)] if abilities.padding else [(13, 13, 13), (14, 14)]
    generator = torch.Generator().manual_seed(1)
    first, second = (
        [torch.randint(3, driver.vocabulary, (length,), generator=generator).tolist() for length in each]
        for each in lengths
    )
    driver.prefill(1, first)
    driver.decode(1)
    look()
    if abilities.moving:
        driver.prefill(2, second)
        driver.decode(1, join=[2])
        driver.decode(1, drop=[1])
        driver.split(1, 3, [4, 0])
        driver.decode(3)
    driver.decode(1, drop=[2])
    driver.decode(1)
    look()


def _cost(runtime: LocalRuntime, survey: Survey) -> tuple[int, int]:
    """Of all units, with those rows that left a unit which cannot move rows."""
    units = runtime._executor._units.values()
    columns = sum(len(unit._rows) * unit.length for unit in units)
    rows = sum(len(unit._rows) for unit in units)
    promised = survey.rows.kv_bytes_per_position * columns + survey.rows.kv_bytes_per_row * rows
    return sum(unit.kv_bytes for unit in units), promised


def exchanged_experts(survey: Survey) -> Survey:
    """A mutant: every expert is read from its neighbour's place."""
    places = np.roll(survey.place_table(), 1, axis=1)
    return msgspec.structs.replace(survey, places=places.tobytes())


def reference(folder: Path) -> Any:
    """Resident transformers in float32."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

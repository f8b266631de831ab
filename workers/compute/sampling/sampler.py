"""The chooser of compute: a token for each row of a unit, under the grammar of its request."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ....errors import ExpertFlowError
from ....ipc.messages import RunStep
from ...checkpoint.survey import Survey
from ...grammars.masks import GrammarMasks
from ...model.unit import Unit
from .choose import choose_all
from .failure import RowFailed
from .masks import TokenMask

Chooser = Callable[[RunStep, Unit, Tensor], list[int | RowFailed]]
"""Chooses the tokens of a step from its logits [rows, vocabulary], in the order of the unit's rows."""


def sample(step: RunStep, unit: Unit, logits: Tensor) -> list[int | RowFailed]:
    """Choose a token a row from logits [rows, vocabulary], by its sampling parameters and generation settings.

    Grammars are not looked at: this is for rows that have none.
    """
    return choose_all(logits, unit.samplings, unit.output_indices, unit.histories)


def make_sampler(survey: Survey) -> Chooser:
    """Return a chooser for this model; its tokenizer is loaded at the first grammar."""
    masks = GrammarMasks(Path(survey.folder), survey.vocabulary, survey.eos_ids)

    def sample_masked(step: RunStep, unit: Unit, logits: Tensor) -> list[int | RowFailed]:
        """Choose a token a row as `sample` does, under its grammar."""
        if not any(sampling.grammar for sampling in unit.samplings):
            return sample(step, unit, logits)
        histories, rows = unit.histories, zip(unit.samplings, unit.histories, strict=True)
        grammars = [
            GrammarMask(masks, sampling.grammar, history.settings.eos_ids) if sampling.grammar else None
            for sampling, history in rows
        ]
        return choose_all(logits, unit.samplings, unit.output_indices, histories, grammars)

    return sample_masked


@dataclass(frozen=True, slots=True)
class GrammarMask(TokenMask):
    """The mask of one row's grammar. `end_ids` end its request: they are allowed where the text may end."""

    masks: GrammarMasks
    grammar: str
    end_ids: Sequence[int]

    def apply(self, scores: Tensor, output_ids: Sequence[int]) -> Tensor:
        """Return scores float32 [vocabulary] with -inf for what the grammar bans. Raises RowFailed."""
        try:
            allowed = self.masks.allowed(self.grammar, output_ids, self.end_ids)
        except ExpertFlowError as error:
            raise RowFailed(error.what, error.where, error.remedy) from error
        scores = scores.masked_fill(~torch.from_numpy(allowed), -torch.inf)
        if not bool((scores > -torch.inf).any()) and not bool(scores.isnan().any()):
            what = f"leaves no token after {len(output_ids)} tokens of output"
            raise RowFailed(what, "structured", "Do not ban what it needs: end-of-sequence ids, a minimum, biases")
        return scores

"""Chooses tokens: the same logits, options and tokens so far give the same token, whatever else is in the batch.

Order: bias, settings and penalties (penalties.py), a mask (masks.py), then the first maximum, or a draw from the
distribution (distribution.py).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ....ipc.messages import Sampling
from ...model.processors import TokenHistory
from .distribution import distribution, draw, uniform
from .failure import RowFailed
from .masks import TokenMask
from .penalties import is_neutral, penalise


def choose(logits: Tensor, sampling: Sampling, output_index: int) -> int:
    """Choose the token for one row of logits [vocabulary] to which penalties and mask are applied already.

    A given first token is taken, greedy sampling takes the first maximum, other sampling draws. Raises RowFailed for
    logits that contain NaN or have no finite maximum, and for a temperature that is not a positive number.
    """
    if output_index == 0 and sampling.first_token is not None:
        return sampling.first_token
    if sampling.temperature == 0:
        return _greedy(logits)
    return draw(distribution(logits, sampling), uniform(sampling.seed, output_index))


def choose_all(
    logits: Tensor,
    samplings: Sequence[Sampling],
    output_indices: Sequence[int],
    histories: Sequence[TokenHistory] = (),
    masks: Sequence[TokenMask | None] = (),
) -> list[int | RowFailed]:
    """Choose one token for each row of logits [rows, vocabulary]; a row that has none gets its failure.

    `histories` (tokens so far and generation settings) and `masks` have one entry a row, or are empty. Rows that are
    all greedy and neutral take one argmax together.
    """
    known = histories or [None] * len(samplings)
    banning = masks or [None] * len(samplings)
    plain = map(_is_plain, samplings, known, banning)
    if all(plain) and not bool(logits.isnan().any()):
        return [int(token) for token in logits.argmax(dim=-1).tolist()]
    return [_choose_or_fail(*row) for row in zip(logits, samplings, output_indices, known, banning, strict=True)]


def _is_plain(sampling: Sampling, history: TokenHistory | None, mask: TokenMask | None) -> bool:
    """Return whether the token of a row is the first maximum of its logits as they are."""
    greedy = sampling.temperature == 0 and sampling.first_token is None
    return greedy and mask is None and is_neutral(sampling, history)


def _choose_or_fail(
    logits: Tensor, sampling: Sampling, output_index: int, history: TokenHistory | None, mask: TokenMask | None
) -> int | RowFailed:
    try:
        scores = penalise(logits, sampling, history)
        if mask is not None:
            scores = mask.apply(scores.float().cpu(), history.output_ids if history else ())
        return choose(scores, sampling, output_index)
    except RowFailed as failure:
        return failure


def _greedy(logits: Tensor) -> int:
    if bool(logits.isnan().any()):
        raise RowFailed("its logits contain NaN", "sampling", "The model or its weights are broken for this input")
    return int(logits.argmax())

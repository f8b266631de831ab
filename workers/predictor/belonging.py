"""Whether a trained predictor belongs to the model at hand."""

from __future__ import annotations

from ...errors import CheckpointError
from .choice import Subject

REMEDY = "Train one for this model: `expertflow train TRACE --out FILE`"


def check_belongs(sizes: tuple[int, int, int], model: str, subject: Subject, where: str) -> None:
    """`sizes` are layers, experts and top_k that it was trained for, `model` a fingerprint or empty (not known).

    Raises CheckpointError if they are not those of the model.
    """
    wanted = (subject.layers, subject.experts, subject.top_k)
    if sizes != wanted:
        words = "{} layers of {} experts, top {}"
        what = f"was trained for {words.format(*sizes)}; this model has {words.format(*wanted)}"
        raise CheckpointError(what, where, REMEDY)
    if model and subject.fingerprint and model != subject.fingerprint:
        what = f"was trained for the model {model}; this one is {subject.fingerprint}"
        raise CheckpointError(what, where, REMEDY)

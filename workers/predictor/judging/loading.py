"""A stored predictor, ready to be judged on a trace."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ....errors import UsageError
from ...traces.trace import Trace
from ..base.forecaster import Forecaster
from ..base.predictor_file import check_belongs, stored_kind
from ..base.spelling import Spelling
from ..registry import ModelShape


@dataclass(frozen=True)
class StoredPredictor:
    """A predictor read from a file. `make(adapts)` gives a fresh one, which goes on learning or not."""

    kind: str
    adapts: bool
    make: Callable[[bool], Forecaster]


def load_predictor(file: Path, trace: Trace) -> StoredPredictor:
    """Read a predictor for the model of `trace`, whose token ids it is asked for.

    Raises UsageError if it is none or names tokens in another way than the trace, CheckpointError if it belongs to
    another model.
    """
    kind = stored_kind(file)
    if kind not in _LOADERS:
        what = f"is of kind '{kind}', which cannot be judged on a trace"
        raise UsageError(what, str(file), f"Give a predictor of kind {' or '.join(_LOADERS)}")
    return _LOADERS[kind](file, trace)


def _path(file: Path, trace: Trace) -> StoredPredictor:
    from ..path.file import read_path
    from ..path.forecaster import PathForecaster as PathForecaster

    stored = read_path(file)
    check_belongs(stored.header, _subject(trace), str(file))
    spelling = _spelling(file, stored.table.tokens, trace)
    return StoredPredictor("path", True, lambda adapts: PathForecaster(stored, spelling, adapts))


def _paper(file: Path, trace: Trace) -> StoredPredictor:
    from ..t5.file import read_paper
    from ..t5.forecaster import T5Forecaster

    stored = read_paper(file)
    check_belongs(stored.header, _subject(trace), str(file))
    spelling = _spelling(file, stored.tokens, trace)
    return StoredPredictor("paper", False, lambda adapts: T5Forecaster(stored, spelling))


_LOADERS: dict[str, Callable[[Path, Trace], StoredPredictor]] = {"path": _path, "paper": _paper}


def _subject(trace: Trace) -> ModelShape:
    return ModelShape(layers=trace.layers, experts=trace.expert_count, top_k=trace.top_k, fingerprint=trace.model)


def _spelling(file: Path, tokens: np.ndarray, trace: Trace) -> Spelling | None:
    """Return the strings of the trace's token ids. A trace and a predictor must name tokens in the same way."""
    by_string = tokens.dtype.kind == "U"
    if by_string == (trace.vocabulary is not None):
        return None if trace.vocabulary is None else trace.vocabulary.__getitem__
    ways = ("strings", "ids") if by_string else ("ids", "strings")
    what = f"knows tokens by their {ways[0]}, and the trace has their {ways[1]}"
    raise UsageError(what, str(file), "Judge on a trace of the same form as it was trained on")

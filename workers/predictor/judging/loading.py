"""Reads a stored predictor to judge it on a trace."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ....errors import UsageError
from ...traces.trace import Trace
from ..base.forecaster import Forecaster
from ..base.model_shape import ModelShape
from ..base.predictor_file import check_belongs, stored_kind
from ..base.vocabulary import Spelling


@dataclass(frozen=True)
class StoredPredictor:
    """A predictor read from a file. `make(adapts)` returns a fresh forecaster, which goes on learning or not."""

    kind: str
    adapts: bool
    make: Callable[[bool], Forecaster]


def load_predictor(file: Path, trace: Trace) -> StoredPredictor:
    """Read a predictor for the model of `trace`, to predict tokens with the ids of that trace.

    Raise UsageError if the file is no predictor or names tokens in another way than the trace, CheckpointError if the
    predictor belongs to another model.
    """
    kind = stored_kind(file)
    if kind not in _LOADERS:
        what = f"is of kind '{kind}', which cannot be judged on a trace"
        raise UsageError(what, str(file), f"Give a predictor of kind {' or '.join(_LOADERS)}")
    return _LOADERS[kind](file, trace)


def _path(file: Path, trace: Trace) -> StoredPredictor:
    from ..path.file import read_path
    from ..path.forecaster import PathForecaster

    stored = read_path(file)
    check_belongs(stored.header, _model_shape(trace), str(file))
    spelling = _spelling(file, stored.table.tokens, trace)
    return StoredPredictor("path", True, lambda adapts: PathForecaster(stored, spelling, adapts))


def _t5(file: Path, trace: Trace) -> StoredPredictor:
    from ..t5.file import read_t5
    from ..t5.forecaster import T5Forecaster

    stored = read_t5(file)
    check_belongs(stored.header, _model_shape(trace), str(file))
    spelling = _spelling(file, stored.tokens, trace)
    return StoredPredictor("paper", False, lambda adapts: T5Forecaster(stored, spelling))


_LOADERS: dict[str, Callable[[Path, Trace], StoredPredictor]] = {"path": _path, "paper": _t5}


def _model_shape(trace: Trace) -> ModelShape:
    return ModelShape(layers=trace.layers, experts=trace.expert_count, top_k=trace.top_k, fingerprint=trace.model)


def _spelling(file: Path, tokens: np.ndarray, trace: Trace) -> Spelling | None:
    """Return the spelling of the trace's token ids. Trace and predictor must name tokens in the same way."""
    by_string = tokens.dtype.kind == "U"
    if by_string == (trace.vocabulary is not None):
        return None if trace.vocabulary is None else trace.vocabulary.__getitem__
    ways = ("strings", "ids") if by_string else ("ids", "strings")
    what = f"knows tokens by their {ways[0]}, and the trace has their {ways[1]}"
    raise UsageError(what, str(file), "Judge on a trace of the same form as it was trained on")

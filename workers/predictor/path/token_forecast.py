"""The token table of a trained path predictor alone: probabilities of experts for a token by its id."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..base.model_shape import ModelShape
from ..base.predictor_file import check_belongs
from ..base.token_table import smooth
from ..base.vocabulary import tokenizer_spelling
from .file import read_path
from .lexicon import Lexicon

TokenForecast = Callable[[np.ndarray], np.ndarray]
"""Returns float32 [n, layers * experts], probabilities less the experts' popularity, of token ids int64 [n]."""


def load_token_forecast(file: Path, model_folder: str, shape: ModelShape | None = None) -> TokenForecast:
    """Return the forecast of a trained file. `model_folder` has the tokenizer that spells the ids.

    Raise UsageError if the file is no path predictor, CheckpointError if it was trained for a model of other sizes.
    """
    path = read_path(file)
    if shape is not None:
        check_belongs(path.header, shape, str(file))
    popularity = path.weights["popularity"].astype(np.float32)
    lexicon = Lexicon(path.table, 0, tokenizer_spelling(model_folder))

    def forecast(ids: np.ndarray) -> np.ndarray:
        counts, seen, _ = lexicon.look_up(ids)
        return smooth(counts.astype(np.float32), seen.astype(np.float32)[:, None], popularity) - popularity

    return forecast

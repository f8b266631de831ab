"""The order in which the lines of a file run, a window of lines at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ...errors import CheckpointError, UsageError
from ...workers.predictor.path.token_forecast import TokenForecast, load_token_forecast
from ...workers.predictor.registry import FILE_NAME
from ..text.codec import TextCodec
from .features import TokenVectors, line_features, prompt_text
from .ordering import deal_rows, order_lines, windows
from .store import IndexedInput


def input_order(given: IndexedInput) -> Iterator[np.ndarray]:
    """Yield the rows that are open in the order of the file, int64 [n] at a time."""
    yield from windows(given.index.open_rows)


def shared_order(
    given: IndexedInput, codec: TextCodec, forecast: TokenForecast | None, parts: int = 1
) -> Iterator[np.ndarray]:
    """Yield the rows that are open, int64 [n] at a time: neighbours share a prefix or use the same experts.

    With several `parts` (replicas of a cluster), rows of one part are neighbours, and the parts take turns.

    Each window is read and its ends are tokenised before its first row comes out. Raises InputChanged.
    """
    vectors, encode = TokenVectors(forecast), codec.encode if codec.available else None
    for rows in windows(given.index.open_rows):
        prompts = (prompt_text(given.request(row).body) for row in rows.tolist())
        yield deal_rows(rows[order_lines(line_features(prompts, encode, vectors))], parts)


def find_forecast(folder: Path, predictor_file: str = "") -> TokenForecast | None:
    """Return the forecast of the trained predictor that is named, or that the model's folder has; None without one.

    Raises UsageError or CheckpointError if the named file is no path predictor.
    """
    if predictor_file:
        return load_token_forecast(Path(predictor_file), str(folder))
    try:
        return load_token_forecast(folder / FILE_NAME, str(folder))
    except (UsageError, CheckpointError):  # none, or of another kind
        return None

"""A grown model kept from the stream, and its experts served through the loader on the stream's own items."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from safetensors.torch import load_file, save_file
from torch import Tensor

from .readers.rows import Ratings
from .serving.measure import Workload, serve
from .speed import grown_model
from .stream import StreamSettings, WindowResult, run_stream
from .windows import cut_windows, require_full_windows
from .xsmoe.model import Recommender

ROWS_A_STEP = 8
"""Interactions whose items are encoded together."""


def stream_results(
    ratings: Ratings, states: Tensor, settings: StreamSettings, file: Path, experts: int
) -> list[WindowResult]:
    """Run the stream; keep in `file` the first model whose layers all have `experts` experts, else the last one.

    Raises DataError for a data set that is too small.
    """
    require_full_windows(ratings, settings.windows)
    results = []
    for result, model in run_stream(ratings, states, settings):
        results.append(result)
        if set(result.experts) == {experts} or max(result.experts) < experts:
            save_file(model.state_dict(), file)
    return results


def load_model(file: Path, width: int) -> Recommender:
    """Return the model of this file, whose width is that of the states."""
    weights = load_file(file)
    experts = max(int(name.split(".experts.")[1].split(".")[0]) for name in weights if ".experts." in name) + 1
    model = grown_model(width, experts)
    model.load_state_dict(weights)
    return model.eval()


def serve_grown(
    ratings: Ratings,
    states: Tensor,
    weights: Path,
    windows: int,
    steps: int,
    widening: int,
    top_k: int,
    share: float,
) -> Workload:
    """Serve the items of the last window in the order of its interactions, ROWS_A_STEP of these a step."""
    items = cut_windows(ratings, windows)[-1].items[: steps * ROWS_A_STEP]
    batches = [np.unique(items[start : start + ROWS_A_STEP]) for start in range(0, len(items), ROWS_A_STEP)]
    model = load_model(weights, states.shape[3])
    with tempfile.TemporaryDirectory(dir=weights.parent) as folder:
        return serve(model, states, batches, Path(folder), widening, top_k, share)

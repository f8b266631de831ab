"""Memory of a predictor's process, once its histories and tables are full."""

from __future__ import annotations

from pathlib import Path

from ...configs.schema import Config
from ..checkpoint.survey import ModelSizes
from .base.model_shape import ModelShape
from .base.token_table import TABLE_BYTES
from .baselines import REMEMBERED_REQUESTS, REMEMBERED_ROWS
from .path import history
from .registry import FILE_NAME, choose_predictor

WITH_TORCH_BYTES = 370 * 10**6
"""Memory of torch itself; the paper's transformer is the only predictor that imports it."""
PAPER_CACHE_BYTES = 16_384 * 48_000
"""Keys and values of the most tokens that the transformer caches, with the paper's sizes."""
COPIES_OF_FILE = 3
"""A trained file is read, taken apart and widened to float32."""


def predictor_bytes(config: Config, sizes: ModelSizes) -> int:
    """Return the most bytes that the configured predictor adds to the bare process.

    `auto` counts as the predictor chosen for this model. An oracle's recording, which may be of any length, is not
    counted.
    """
    shape = ModelShape(layers=sizes.layers, experts=sizes.experts, top_k=sizes.top_k, folder=sizes.folder)
    name = choose_predictor(config, shape)
    own = _own_bytes(name, config, shape)
    return own + (_own_bytes("table", config, shape) if sizes.encoder_layers and own else 0)


def _own_bytes(name: str, config: Config, shape: ModelShape) -> int:
    match name:
        case "table" | "opposite":
            return TABLE_BYTES
        case "path":
            return history.MEMORY_BYTES + COPIES_OF_FILE * _file_bytes(config, shape)
        case "paper":
            return WITH_TORCH_BYTES + PAPER_CACHE_BYTES + COPIES_OF_FILE * _file_bytes(config, shape)
        case "previous":
            return REMEMBERED_ROWS * (shape.layers * shape.top_k * 2 + 300)  # an array object each
        case "matrices":
            return REMEMBERED_REQUESTS * shape.layers * shape.experts * 4
        case _:
            return 0


def _file_bytes(config: Config, shape: ModelShape) -> int:
    """Return the size of the predictor file; 0 if it is missing, which the start of the engine refuses."""
    file = Path(config.predictor_file or Path(shape.folder, FILE_NAME))
    return file.stat().st_size if file.is_file() else 0

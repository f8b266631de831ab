"""What a predictor's process grows by, from its start to when its histories and tables are full."""

from __future__ import annotations

from pathlib import Path

from ...configs.schema import Config
from ..checkpoint.survey import ModelSizes
from .base.token_table import TABLE_BYTES
from .baselines.activation_matrices import REMEMBERED_REQUESTS
from .baselines.previous import REMEMBERED_ROWS
from .path import rows
from .registry import FILE_NAME, ModelShape, chosen_predictor

WITH_TORCH_BYTES = 370 * 10**6
"""What torch takes besides: the paper's transformer is the only predictor that imports it."""
PAPER_CACHE_BYTES = 16_384 * 48_000
"""Keys and values of the most tokens that it caches, with the paper's sizes."""
COPIES_OF_FILE = 3
"""A trained file is read, taken apart and widened to float32."""


def predictor_bytes(config: Config, sizes: ModelSizes) -> int:
    """Return how much the configured predictor takes at most besides the bare process.

    `auto` is what it comes to for this model. An oracle's recording, which may be of any length, is not counted.
    """
    subject = ModelShape(layers=sizes.layers, experts=sizes.experts, top_k=sizes.top_k, folder=sizes.folder)
    name = chosen_predictor(config, subject)
    own = _own_bytes(name, config, subject)
    return own + (_own_bytes("table", config, subject) if sizes.encoder_layers and own else 0)


def _own_bytes(name: str, config: Config, subject: ModelShape) -> int:
    match name:
        case "table" | "opposite":
            return TABLE_BYTES
        case "path":
            return rows.MEMORY_BYTES + COPIES_OF_FILE * _file_bytes(config, subject)
        case "paper":
            return WITH_TORCH_BYTES + PAPER_CACHE_BYTES + COPIES_OF_FILE * _file_bytes(config, subject)
        case "previous":
            return REMEMBERED_ROWS * (subject.layers * subject.top_k * 2 + 300)  # an array object each
        case "matrices":
            return REMEMBERED_REQUESTS * subject.layers * subject.experts * 4
        case _:
            return 0


def _file_bytes(config: Config, subject: ModelShape) -> int:
    """0 for a file that is missing, which the start of the engine refuses."""
    file = Path(config.predictor_file or Path(subject.folder, FILE_NAME))
    return file.stat().st_size if file.is_file() else 0

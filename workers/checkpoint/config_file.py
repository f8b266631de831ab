"""Reads config.json of a checkpoint folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ...errors import CheckpointError
from .partial_models import refuse_adapter
from .quantisation_config import refuse_unread
from .refused_weights import refuse_gguf


def read_config(folder: Path) -> dict[str, Any]:
    """Return config.json of a checkpoint folder.

    Raises CheckpointError if it is missing or broken, and by name for adapters and quantised formats that are not read.
    """
    file = folder / "config.json"
    refuse_adapter(folder)
    if not file.is_file():
        refuse_gguf(folder)
        raise CheckpointError("has no config.json", str(folder), "Give the folder of a Hugging Face checkpoint")
    try:
        config = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"is not valid JSON ({error})", str(file), "Download the checkpoint again") from error
    if not isinstance(config, dict):
        raise CheckpointError("is not a JSON object", str(file), "Download the checkpoint again")
    refuse_unread(config, file)
    return config

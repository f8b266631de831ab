"""Reads config.json of a checkpoint folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ...errors import CheckpointError
from .partial_models import refuse_adapter
from .quantisation_config import refuse_unread

MAX_BYTES = 10_000_000
"""Size of a config.json. Large ones list the labels of a classifier, or what a quantisation leaves out."""


def read_config(folder: Path) -> dict[str, Any]:
    """Return config.json of a checkpoint folder.

    Raises CheckpointError if it is missing, unreadable or broken, and by name for adapters and quantised formats that
    are not read.
    """
    file = folder / "config.json"
    try:
        return _read(folder, file)
    except PermissionError as error:
        raise CheckpointError("cannot be read (Permission denied)", str(file), "Check its permissions") from error


def _read(folder: Path, file: Path) -> dict[str, Any]:
    refuse_adapter(folder)
    if not file.is_file():
        raise CheckpointError("has no config.json", str(folder), "Give the folder of a Hugging Face checkpoint")
    if file.stat().st_size > MAX_BYTES:
        raise CheckpointError(f"is larger than {MAX_BYTES:,} bytes", str(file), "Download the checkpoint again")
    try:
        config = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"is not valid JSON ({error})", str(file), "Download the checkpoint again") from error
    if not isinstance(config, dict):
        raise CheckpointError("is not a JSON object", str(file), "Download the checkpoint again")
    refuse_unread(config, file)
    return config

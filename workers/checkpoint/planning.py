"""What is known of a model without downloading its weights: for `expertflow plan`."""

from __future__ import annotations

from pathlib import Path

import msgspec

from ...errors import CheckpointError
from .headers import INDEX, SINGLE, weight_names
from .hub import fetch_config, listed_bytes
from .packed import refuse_gguf, refuse_packed_index
from .resolve import local_folder, read_config
from .sizing import model_sizes
from .survey import ModelSizes
from .surveyor import survey_folder


def plan_sizes(model: str, revision: str = "", dtype: str = "auto") -> ModelSizes:
    """The survey of a checkpoint whose weights are on this machine, else the sizes that its configuration gives.

    Raises what `survey_checkpoint` raises; of a hub id, only configuration and index are fetched.
    """
    folder = local_folder(model)
    if folder:
        started = (folder / INDEX).is_file() or (folder / SINGLE).is_file()
        if started:
            return survey_folder(folder, dtype)
        refuse_gguf(folder)
        return _sizes_of(folder, dtype)
    folder = fetch_config(model, revision)
    if all((folder / name).is_file() for name in weight_names(folder)):
        return survey_folder(folder, dtype)
    return msgspec.structs.replace(_sizes_of(folder, dtype), checkpoint_bytes=listed_bytes(model, folder))


def _sizes_of(folder: Path, dtype: str) -> ModelSizes:
    try:
        refuse_packed_index(read_config(folder), folder)
        return model_sizes(folder, dtype)
    except OSError as error:
        what = f"cannot be read ({error.strerror or error})"
        raise CheckpointError(what, str(error.filename or folder), "Check its permissions") from error

"""What is known of a model without downloading its weights: for `expertflow plan`.

Torch is imported once there is a model to look at: a wrong name is refused at once.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from ...errors import CheckpointError
from ..checkpoint.config_file import read_config
from ..checkpoint.headers import weights_entry
from ..checkpoint.hub import fetch_config, listed_bytes, needed_weights
from ..checkpoint.resolve import local_folder
from ..checkpoint.survey import ModelSizes
from ..checkpoint.unsupported import refuse_gguf, refuse_packed_index


def plan_sizes(model: str, revision: str = "", dtype: str = "auto", generation_settings: str = "honour") -> ModelSizes:
    """The survey of a checkpoint whose weights are on this machine, else the sizes that its configuration gives.

    Raises what `survey_checkpoint` raises; of a hub id, only configuration and index are fetched.
    """
    folder = local_folder(model)
    if folder:
        if (folder / weights_entry(folder)).is_file():
            return _survey(folder, dtype, generation_settings)
        refuse_gguf(folder)
        return _sizes_of(folder, dtype)
    folder = fetch_config(model, revision)
    if all((folder / name).is_file() for name in needed_weights(model, folder)):
        return _survey(folder, dtype, generation_settings)
    return msgspec.structs.replace(_sizes_of(folder, dtype), checkpoint_bytes=listed_bytes(model, folder))


def _survey(folder: Path, dtype: str, generation_settings: str) -> ModelSizes:
    from .surveyor import survey_folder

    return survey_folder(folder, dtype, generation_settings)


def _sizes_of(folder: Path, dtype: str) -> ModelSizes:
    from .sizing import model_sizes

    try:
        refuse_packed_index(read_config(folder), folder)
        return model_sizes(folder, dtype)
    except OSError as error:
        what = f"cannot be read ({error.strerror or error})"
        raise CheckpointError(what, str(error.filename or folder), "Check its permissions") from error

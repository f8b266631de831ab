"""Entry points of the surveyor that need no torch: it is imported once there is a model to look at."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from ...errors import CheckpointError
from ...ipc.messages import AskSurvey, Progress
from ..checkpoint.config_file import read_config
from ..checkpoint.headers import weights_entry
from ..checkpoint.hub import fetch_config, listed_bytes, needed_weights
from ..checkpoint.refused_weights import refuse_gguf, refuse_packed_index
from ..checkpoint.resolve import local_folder, resolve_folder
from ..checkpoint.survey import ModelSizes, Survey


def answer_survey_request(asked: AskSurvey, report: Callable[[Progress], None]) -> Survey:
    """Survey a checkpoint; a hub id is downloaded before. Raises what `survey_checkpoint` raises.

    Torch is imported once there is a model to look at: a wrong name is refused at once.
    """

    def tell(done: int, total: int) -> None:
        report(Progress("checkpoint", f"downloading {asked.model}", min(done, total), total))

    folder = resolve_folder(asked.model, asked.revision, tell)
    with paused_garbage_collection():
        from .surveyor import survey_folder

    return survey_folder(folder, asked.dtype, asked.generation_settings)


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


@contextmanager
def paused_garbage_collection() -> Iterator[None]:
    """While modules are imported nothing is garbage; collecting took a fifth of importing torch and transformers.

    They stay as long as the process does, so the collector never looks at them again either.
    """
    gc.collect()  # what is garbage before would stay too
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()

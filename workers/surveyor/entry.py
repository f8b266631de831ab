"""Entry points of the surveyor without torch, which is imported once there is a model: a wrong name fails at once.

The compute process answers the supervisor's request for a survey before it becomes compute: both need torch and
transformers, whose import takes most of a start. `expertflow plan` asks for sizes in a process of its own.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from ...errors import CheckpointError
from ...ipc.messages import AskSurvey, Progress
from ..checkpoint.config_file import read_config
from ..checkpoint.hub import fetch_config, listed_bytes, needed_weights
from ..checkpoint.refused_weights import refuse_packed_index
from ..checkpoint.resolve import local_folder, resolve_folder
from ..checkpoint.stored_weights import has_weights_here
from ..checkpoint.survey import ModelSizes, Survey
from ..packed.choice import DEQUANTISED, PackingChoice


def answer_survey_request(request: AskSurvey, report: Callable[[Progress], None]) -> Survey:
    """Survey a checkpoint; a hub id is downloaded before. Raises what `survey_checkpoint` raises.

    The survey comes with the kernel table that the request asks for; kernels are timed now if none was kept.
    """

    def report_download(done: int, total: int) -> None:
        report(Progress("checkpoint", f"downloading {request.model}", min(done, total), total))

    folder = resolve_folder(request.model, request.revision, report_download)
    with paused_garbage_collection():
        from ..kernels.making import TableMaker
        from .surveyor import kernels_by_rule, survey_folder

    maker = TableMaker(request.kernels, report, request.measure)
    make_table = kernels_by_rule if request.on_device else maker.make
    choice = PackingChoice(request.experts_in)
    survey = survey_folder(folder, request.dtype, request.generation_settings, make_table, choice)
    return msgspec.structs.replace(survey, notices=[*survey.notices, *maker.notices])


def plan_sizes(
    model: str,
    revision: str = "",
    dtype: str = "auto",
    generation_settings: str = "honour",
    choice: PackingChoice = DEQUANTISED,
    kernels: str = "",
) -> ModelSizes:
    """Return the survey of a checkpoint whose weights are on this machine, else the sizes by its configuration.

    Only configuration and index of a hub id are fetched. `kernels`: as configured, for a survey with the table that
    this machine keeps; nothing is timed. Empty: no table. Raises what `survey_checkpoint` raises.
    """
    folder, weights_here = _find(model, revision)
    if weights_here:
        return _survey(folder, dtype, generation_settings, choice, kernels)
    if local_folder(model):
        return _sizes_by_config(folder, dtype, choice)
    return msgspec.structs.replace(
        _sizes_by_config(folder, dtype, choice), checkpoint_bytes=listed_bytes(model, folder)
    )


def has_weights(model: str, revision: str = "") -> bool:
    """Return whether the weights of a model are on this machine. Only the configuration of a hub id is fetched."""
    return _find(model, revision)[1]


def _find(model: str, revision: str) -> tuple[Path, bool]:
    """Return the folder of a model's configuration, and whether its weights are there, too."""
    if folder := local_folder(model):
        return folder, has_weights_here(folder)
    folder = fetch_config(model, revision)
    return folder, all((folder / name).is_file() for name in needed_weights(model, folder))


def _survey(folder: Path, dtype: str, settings: str, choice: PackingChoice, kernels: str) -> ModelSizes:
    from ..kernels.making import TableMaker
    from .surveyor import kernels_by_rule, survey_folder

    make_table = TableMaker(kernels, lambda progress: None, times=False).make if kernels else kernels_by_rule
    return survey_folder(folder, dtype, settings, make_table, choice)


def _sizes_by_config(folder: Path, dtype: str, choice: PackingChoice) -> ModelSizes:
    from .sizing import model_sizes

    try:
        values = read_config(folder)
        refuse_packed_index(values, folder)
        return model_sizes(folder, dtype, values, choice)
    except OSError as error:
        what = f"cannot be read ({error.strerror or error})"
        raise CheckpointError(what, str(error.filename or folder), "Check its permissions") from error


@contextmanager
def paused_garbage_collection() -> Iterator[None]:
    """Pause garbage collection while modules are imported; it took a fifth of importing torch and transformers.

    Modules stay as long as the process does. So all objects are frozen afterwards, and never scanned again.
    """
    gc.collect()  # garbage from before would be frozen, too
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()

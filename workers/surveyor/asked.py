"""The survey as the supervisor asks for it, in the process that will then be compute: both need torch and transformers,
whose import takes most of a start."""

from __future__ import annotations

from collections.abc import Callable

from ...ipc.messages import AskSurvey, Progress
from ..checkpoint.resolve import resolve_folder
from ..checkpoint.survey import Survey
from .imports import importing


def survey_asked(asked: AskSurvey, report: Callable[[Progress], None]) -> Survey:
    """Survey a checkpoint; a hub id is downloaded before. Raises what `survey_checkpoint` raises.

    Torch is imported once there is a model to look at: a wrong name is refused at once.
    """

    def tell(done: int, total: int) -> None:
        report(Progress("checkpoint", f"downloading {asked.model}", min(done, total), total))

    folder = resolve_folder(asked.model, asked.revision, tell)
    with importing():
        from .surveyor import survey_folder

    return survey_folder(folder, asked.dtype, asked.generation_settings)

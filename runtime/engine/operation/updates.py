"""Reports of the engine's thread to whoever started it, and the times of the ladder by which it ends."""

from __future__ import annotations

from typing import NamedTuple

from ....errors import ExpertFlowError
from ....ipc.messages import Progress


class Started(NamedTuple):
    """Every stage is ready."""


class Ended(NamedTuple):
    """The engine has ended and left nothing behind; `cause` is None if the end was asked for."""

    cause: ExpertFlowError | None


EngineUpdate = Progress | Started | Ended


class StopTimes(NamedTuple):
    """Seconds for stages to finish their work, then to obey SIGTERM, then to be dead after SIGKILL."""

    drain_s: float
    terminate_s: float
    kill_s: float

"""The change of a running engine's configuration: end the stages concerned, exchange, start them, or go back.

While a reload is under way its stages belong to it: none is restarted by the roster, and none counts as dead. Requests
wait meanwhile as they wait for the successor of a dead stage, so none is lost and no token changes (I4).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from ....errors import ExpertFlowError

END_S = 30.0
"""Seconds in which a stage ends its step; then it is killed, and the step is computed again."""

Phase = Literal["ending", "exchanging", "starting", "clearing", "going back", "restoring", "over"]


class EndStage(NamedTuple):
    """Let this stage finish its step and end."""

    stage: str


class KillStarted(NamedTuple):
    """Kill this stage, which is of no use any more."""

    stage: str


class Exchange(NamedTuple):
    """Put the new setup in place (`forward`), or the old one; `on_exchanged` takes the outcome."""

    forward: bool


class StartStage(NamedTuple):
    """Start this stage with the setup in place."""

    stage: str


class ReloadOver(NamedTuple):
    """Report the end: None if the new setup works, else why the old one is in place again."""

    error: ExpertFlowError | None


class NoWayBack(NamedTuple):
    """End the engine: neither setup could be put in place."""

    cause: ExpertFlowError


ReloadAction = EndStage | KillStarted | Exchange | StartStage | ReloadOver | NoWayBack


class ReloadState:
    """State machine of one reload: events in, actions out."""

    def __init__(self, stages: Sequence[str]) -> None:
        """`stages` end one after the other, in this order, and start together."""
        self.phase: Phase = "ending"
        self._stages = list(stages)
        self._living = list(stages)
        self._asked = ""
        self._until_s = math.inf
        self._pending: set[str] = set()
        self._cause: ExpertFlowError | None = None

    def owns(self, stage: str) -> bool:
        """Return whether the end of this stage is a matter of the reload, not of the roster."""
        return stage in self._stages and self.phase not in ("restoring", "over")

    def begin(self, now_s: float) -> list[ReloadAction]:
        """Ask the first stage to end."""
        return self._end_next(now_s)

    def on_ended(self, stage: str, cause: ExpertFlowError, now_s: float) -> list[ReloadAction]:
        """Take the end of a stage that the reload owns: asked for, or by itself."""
        self._living.remove(stage)
        match self.phase:
            case "ending":
                return self._end_next(now_s)
            case "starting":
                self._cause, self.phase = cause, "clearing"
                kills: list[ReloadAction] = [KillStarted(other) for other in self._living]
                return kills or self._go_back()
            case "clearing" if not self._living:
                return self._go_back()
            case _:
                return []

    def on_exchanged(self, error: ExpertFlowError | None) -> list[ReloadAction]:
        """Take the outcome of an `Exchange`."""
        if error is None:
            self.phase = "starting" if self.phase == "exchanging" else "restoring"
            self._pending, self._living = set(self._stages), list(self._stages)
            return [StartStage(stage) for stage in self._stages]
        if self.phase == "exchanging":
            self._cause = error
            return self._go_back()
        self.phase = "over"
        return [NoWayBack(error)]

    def on_ready(self, stage: str) -> list[ReloadAction]:
        """Take the readiness of a stage; the reload is over once all of its stages are ready."""
        self._pending.discard(stage)
        if self._pending or self.phase not in ("starting", "restoring"):
            return []
        self.phase = "over"
        return [ReloadOver(self._cause)]

    def check(self, now_s: float) -> list[ReloadAction]:
        """Kill a stage that does not end in time."""
        if self.phase != "ending" or now_s < self._until_s:
            return []
        self._until_s = math.inf
        return [KillStarted(self._asked)]

    def _end_next(self, now_s: float) -> list[ReloadAction]:
        if not self._living:
            self.phase = "exchanging"
            return [Exchange(forward=True)]
        if self._asked == self._living[0]:
            return []
        self._asked, self._until_s = self._living[0], now_s + END_S
        return [EndStage(self._asked)]

    def _go_back(self) -> list[ReloadAction]:
        self.phase = "going back"
        return [Exchange(forward=False)]

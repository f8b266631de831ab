"""Spare processes: one that has imported what its stage needs and waits, so that a successor of the stage need not."""

from __future__ import annotations

import logging
from collections.abc import Callable

from ...configs.sizes import format_size
from ...ipc.messages import Prepare
from ...ipc.shared.available import available_bytes
from .prestart import PrestartedStage
from .stages import StagePlan

SPARE_BYTES = 450 * 10**6
"""What a process that has imported torch and transformers may take (`fit.WITH_TORCH_BYTES`)."""


class Spares:
    """At most one spare of each stage. Closed, all are killed."""

    def __init__(self, begin: Callable[[StagePlan, int], PrestartedStage]) -> None:
        """`begin(plan, epoch)` starts a process that waits for orders."""
        self._begin = begin
        self._waiting: dict[str, PrestartedStage] = {}

    def prepare(self, plan: StagePlan, epoch: int, folder: str) -> int | None:
        """Start the process that is to be this epoch of the stage, and let it import what the model in `folder` needs.

        Return its pid; None where memory is short, which is logged.
        """
        if (left := available_bytes()) < SPARE_BYTES:
            words = "no spare of stage %s: it may take %s, and %s is available"
            logging.getLogger(__name__).warning(words, plan.stage, format_size(SPARE_BYTES), format_size(left))
            return None
        spare = self._waiting[plan.stage] = self._begin(plan, epoch)
        spare.ask(Prepare(folder))
        return spare.pid

    def take(self, stage: str) -> PrestartedStage | None:
        """Return the spare of a stage, to be told its spec; None if there is none, or if it has died."""
        spare = self._waiting.pop(stage, None)
        if spare is not None and spare.has_ended():
            logging.getLogger(__name__).warning("the spare of %s", spare.reap())
            return None
        return spare

    def close(self) -> None:
        for spare in self._waiting.values():
            spare.close()
        self._waiting.clear()

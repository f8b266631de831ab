"""Stage processes started ahead of their spec: they import meanwhile, may make the survey, or wait as a spare."""

from __future__ import annotations

import contextlib
import logging
import select
import signal
from collections.abc import Callable
from multiprocessing import Pipe
from pathlib import Path

import msgspec

from ...configs.sizes import format_size
from ...errors import EngineError
from ...ipc.messages import Message, Prepare
from ...ipc.messages.control import FROM_SURVEYOR, FromSurveyor
from ...ipc.shared.available import available_bytes
from ...ipc.stage.startup import StageSpec
from .children import Child, spawn
from .stages import StagePlan

MAX_END_MS = 5000
"""Milliseconds within which a process that has closed its socket ends; after that it is killed."""
SPARE_BYTES = 450 * 10**6
"""Upper bound of a process that has imported torch and transformers (`fit.WITH_TORCH_BYTES`)."""


class PrestartedStage:
    """One process that waits for its spec (`ipc/stage/startup.py`). Closed before the spec, it is killed."""

    def __init__(self, plan: StagePlan, epoch: int, fds: list[int], log: Path | None) -> None:
        """Start the process; `fds` are the descriptors that its spec will name."""
        self._connection, child_end = Pipe()
        try:
            with child_end:
                self._child: Child | None = spawn(plan, epoch, child_end.fileno(), fds, log)
        except BaseException:
            self._connection.close()
            raise

    @property
    def pid(self) -> int:
        """Return the pid. Raises RuntimeError once the stage was started or reaped."""
        return self._require_child().pid

    def has_ended(self) -> bool:
        """Return whether the process has died while it waited."""
        return _has_ended(self._require_child(), timeout_ms=0)

    def start(self, spec: StageSpec) -> Child:
        """Send the spec and hand over the child. A process that has died meanwhile is seen like any dead stage."""
        self.send(spec)
        self._connection.close()
        return self._release()

    def send(self, message: Message) -> None:
        """Send a message; `receive` tells whether the process still lives."""
        with contextlib.suppress(ConnectionError):
            self._connection.send_bytes(msgspec.msgpack.encode(message))

    def receive(self, timeout_s: float) -> FromSurveyor:
        """Return the next message. Raises TimeoutError, or EOFError at the end of messages: `reap` gives the reason."""
        if not self._connection.poll(timeout_s):
            raise TimeoutError
        try:
            return FROM_SURVEYOR.decode(self._connection.recv_bytes())
        except OSError as error:  # in the middle of a message, too
            raise EOFError from error

    def reap(self) -> EngineError:
        """Reap a process that sends no more and return a description of its end."""
        self._connection.close()
        if self._child and not _has_ended(self._child, MAX_END_MS):
            self._child.send(signal.SIGKILL)
        return self._release().reap()

    def close(self) -> None:
        """Kill the process; does nothing once the stage was started or reaped."""
        if self._child:
            self._connection.close()
            child = self._release()
            child.send(signal.SIGKILL)
            child.reap()

    def _release(self) -> Child:
        child, self._child = self._require_child(), None
        return child

    def _require_child(self) -> Child:
        if not self._child:
            raise RuntimeError("the stage was started already, or has ended")
        return self._child


class Spares:
    """At most one spare process of each stage, which has imported what the stage needs. `close` kills all of them."""

    def __init__(self, prestart: Callable[[StagePlan, int], PrestartedStage]) -> None:
        """Start with no spare; `prestart(plan, epoch)` starts a process that waits for its spec."""
        self._prestart = prestart
        self._waiting: dict[str, PrestartedStage] = {}

    def prepare(self, plan: StagePlan, epoch: int, folder: str) -> int | None:
        """Start the process for this epoch of the stage; it imports what the model in `folder` needs.

        Returns its pid; None where memory is short, which is logged.
        """
        if (free := available_bytes()) < SPARE_BYTES:
            words = "no spare of stage %s: it may take %s, and %s is available"
            logging.getLogger(__name__).warning(words, plan.stage, format_size(SPARE_BYTES), format_size(free))
            return None
        spare = self._waiting[plan.stage] = self._prestart(plan, epoch)
        spare.send(Prepare(folder))
        return spare.pid

    def take(self, stage: str) -> PrestartedStage | None:
        """Return the spare of a stage; None if there is none, or if it has died."""
        spare = self._waiting.pop(stage, None)
        if spare is not None and spare.has_ended():
            logging.getLogger(__name__).warning("the spare of %s", spare.reap())
            return None
        return spare

    def close(self) -> None:
        """Kill all spares."""
        for spare in self._waiting.values():
            spare.close()
        self._waiting.clear()


def _has_ended(child: Child, timeout_ms: int) -> bool:
    poller = select.poll()
    poller.register(child.pidfd, select.POLLIN)
    return bool(poller.poll(timeout_ms))

"""A process of a stage before it is told which start it will be: it imports meanwhile, and may make the survey."""

from __future__ import annotations

import contextlib
import select
import signal
from multiprocessing import Pipe
from pathlib import Path

import msgspec

from ...errors import EngineError
from ...ipc.messages import Message
from ...ipc.messages.control import FROM_SURVEYOR, FromSurveyor
from ...ipc.stage.startup import StageSpec
from .children import Child, spawn
from .stages import StagePlan

ENDS_WITHIN_MS = 5000
"""A process that has closed its socket is about to end."""


class PrestartedStage:
    """One started process that waits for orders (`ipc.orders`). Closed untold, it is killed."""

    def __init__(self, plan: StagePlan, epoch: int, fds: list[int], log: Path | None) -> None:
        """`fds` are those that its spec will name."""
        self._line, theirs = Pipe()
        try:
            with theirs:
                self._child: Child | None = spawn(plan, epoch, theirs.fileno(), fds, log)
        except BaseException:
            self._line.close()
            raise

    @property
    def pid(self) -> int:
        """Of the process. Raises RuntimeError once it was told or reaped."""
        return self._require().pid

    def has_ended(self) -> bool:
        """Whether it has died while it waited."""
        return _has_ended(self._require(), timeout_ms=0)

    def tell(self, spec: StageSpec) -> Child:
        """It begins; whoever asks takes it over. One that has died meanwhile is seen like any dead stage."""
        self.ask(spec)
        self._line.close()
        return self._release()

    def ask(self, order: Message) -> None:
        """Whether it still lives to hear that, `receive` says."""
        with contextlib.suppress(ConnectionError):
            self._line.send_bytes(msgspec.msgpack.encode(order))

    def receive(self, timeout_s: float) -> FromSurveyor:
        """What it says next. Raises TimeoutError, or EOFError if it says no more: `reap` tells why."""
        if not self._line.poll(timeout_s):
            raise TimeoutError
        try:
            return FROM_SURVEYOR.decode(self._line.recv_bytes())
        except OSError as error:  # in the middle of a message, too
            raise EOFError from error

    def reap(self) -> EngineError:
        """Of one that says no more: how it ended."""
        self._line.close()
        if self._child and not _has_ended(self._child, ENDS_WITHIN_MS):
            self._child.send(signal.SIGKILL)
        return self._release().reap()

    def close(self) -> None:
        """Does nothing once it was told or reaped."""
        if self._child:
            self._line.close()
            child = self._release()
            child.send(signal.SIGKILL)
            child.reap()

    def _release(self) -> Child:
        child, self._child = self._require(), None
        return child

    def _require(self) -> Child:
        if not self._child:
            raise RuntimeError("was told what to do, or has ended")
        return self._child


def _has_ended(child: Child, timeout_ms: int) -> bool:
    poller = select.poll()
    poller.register(child.pidfd, select.POLLIN)
    return bool(poller.poll(timeout_ms))

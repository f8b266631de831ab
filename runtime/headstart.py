"""A stage that takes long to import what it needs is started before it is known what it will be told."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import msgspec

from ..ipc.spec import StageSpec
from .children import Child, spawn_process
from .stages import StagePlan


class HeadStart:
    """One process that imports while its spec is still made (`ipc.entry` reads it from a pipe). Closed untold, it is
    killed."""

    def __init__(self, plan: StagePlan, fds: list[int], log: Path | None) -> None:
        """`fds` are those that its spec will name."""
        self._plan, self._log = plan, log
        spec_fd, self._spec_fd = os.pipe2(os.O_CLOEXEC)
        try:
            self._process = spawn_process(plan, spec_fd, fds, log)
        except BaseException:
            os.close(self._spec_fd)
            raise
        finally:
            os.close(spec_fd)

    def tell(self, spec: StageSpec) -> Child:
        """It begins; whoever asks takes it over. One that has died meanwhile is seen like any dead stage."""
        with contextlib.suppress(BrokenPipeError):
            os.write(self._spec_fd, msgspec.msgpack.encode(spec))
        os.close(self._spec_fd)
        self._spec_fd = -1
        return Child(self._plan.stage, spec.epoch, self._process, self._log)

    def close(self) -> None:
        """Does nothing once it was told."""
        if self._spec_fd >= 0:
            os.close(self._spec_fd)
            self._spec_fd = -1
            self._process.kill()
            self._process.wait()

"""What engines of one group have in common: where they live, the survey of the checkpoint, the host store.

The first engine surveys the model, allocates the store and fills it. The others wait for the survey and the allocation
while their processes import, then start beside it; their loaders wait until the store is full. All of it belongs to the
group, so that it stays for the rest when one engine ends.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from threading import Lock

from ...errors import EngineError
from ...ipc.shared.attachments import FOLDER
from ...ipc.shared.memory import Arena
from ...ipc.shared.rundir import ENGINES, RunDir
from ...workers.checkpoint.survey import Survey


class StandaloneResources:
    """Of an engine that shares nothing."""

    base: Path | None = None
    """Where its run directory is made; None: where all are."""
    store: HostStore | None = None
    """The host store, if it is not the engine's own."""
    fills = True
    """Whether it fills its host store itself."""

    def survey(self, make: Callable[[], Survey]) -> Survey:
        return make()

    def taking_memory(self) -> AbstractContextManager[object]:
        """One engine looks at a time for what is left of the machine's memory, and takes of it."""
        return nullcontext()

    def taken(self) -> None:
        """It has what it needs."""


class HostStore:
    """Every expert of a model, for several engines; `full_fd` (an eventfd) can be read from once they are there."""

    def __init__(self) -> None:
        self.arena = Arena.reserve("host")
        self.full_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def close(self) -> None:
        self.arena.close()
        os.close(self.full_fd)


class GroupResources:
    """Made by a group before its engines are, closed after they have ended."""

    def __init__(self, whole_store: bool) -> None:
        """With `whole_store` one host store holds the model; else each engine has a part of its own."""
        self.turn = Lock()
        self.surveyed: Future[Survey] = Future()
        self.allocated: Future[None] = Future()
        with ExitStack() as stack:
            self.run_dir = RunDir.create()
            stack.callback(self.run_dir.close)
            self.base = self.run_dir.path / ENGINES
            self.base.mkdir(mode=0o700)
            self.store = HostStore() if whole_store else None
            if self.store:
                stack.callback(self.store.close)
            self._stack = stack.pop_all()

    def give_up(self) -> None:
        """Whoever still waits for the first engine waits for nothing."""
        for promise in (self.surveyed, self.allocated):
            if not promise.done():
                promise.set_exception(EngineError("the first engine of the group did not start", "group"))

    def open_attachments(self, run_dirs: list[str]) -> None:
        """What clients bring along lies here, and every engine finds it in its own run directory."""
        folder = self.run_dir.path / FOLDER
        folder.mkdir(mode=0o700)
        for run_dir in run_dirs:
            Path(run_dir, FOLDER).symlink_to(folder)

    def close(self) -> None:
        self._stack.close()


class GroupLeader(StandaloneResources):
    """Of the engine that surveys and fills for all."""

    def __init__(self, common: GroupResources) -> None:
        self._common, self.base, self.store = common, common.base, common.store

    def survey(self, make: Callable[[], Survey]) -> Survey:
        survey = make()
        self._common.surveyed.set_result(survey)
        return survey

    def taking_memory(self) -> AbstractContextManager[object]:
        return self._common.turn

    def taken(self) -> None:
        self._common.allocated.set_result(None)


class GroupMember(GroupLeader):
    """Of each other engine."""

    fills = False

    def survey(self, make: Callable[[], Survey]) -> Survey:
        """Raises EngineError if the first engine does not start."""
        survey = self._common.surveyed.result()
        self._common.allocated.result()
        return survey

    def taken(self) -> None:
        """Nobody waits for that."""

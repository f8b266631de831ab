"""Resources that the engines of a group share: run directory, survey of the checkpoint, host store.

The first engine (leader) surveys the model, allocates the store and fills it. The others (members) wait for the survey
and the allocation while their processes import, then start beside it; their loaders wait until the store is full. The
group owns all of it, so that it stays when one engine ends.
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
    """Resources of an engine that shares nothing; also the interface of the other kinds."""

    address: str = ""
    """Path of the run directory; empty: a name of its own in `base`."""
    base: Path | None = None
    """Folder in which the engine makes its run directory; None: the default."""
    store: HostStore | None = None
    """The host store of the group; None: the engine has its own, if any."""
    fills = True
    """True: the engine fills its host store itself."""

    def __init__(self, address: str = "") -> None:
        self.address = address

    def make_run_dir(self) -> RunDir:
        """Make the run directory. Raises UsageError if that is not possible."""
        return RunDir.at(Path(self.address)) if self.address else RunDir.create(self.base)

    def survey(self, make: Callable[[], Survey]) -> Survey:
        """Return the survey, made here with `make` or by the leader."""
        return make()

    def memory_lock(self) -> AbstractContextManager[object]:
        """Return the lock under which an engine reads the available memory and allocates its own."""
        return nullcontext()

    def on_allocated(self) -> None:
        """Note that the engine has allocated its memory."""


class HostStore:
    """Every expert of a model, for several engines; `full_fd` (an eventfd) is readable once the store is full."""

    def __init__(self) -> None:
        self.arena = Arena.reserve("host")
        self.full_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def close(self) -> None:
        """Close memory and eventfd."""
        self.arena.close()
        os.close(self.full_fd)


class GroupResources:
    """Shared resources of a group: made before its engines, closed after their ends."""

    def __init__(self, whole_store: bool, address: str = "") -> None:
        """Make a run directory (at `address`, if given) and, with `whole_store`, one host store for all engines."""
        self.memory_lock = Lock()
        self.surveyed: Future[Survey] = Future()
        self.allocated: Future[None] = Future()
        with ExitStack() as stack:
            self.run_dir = StandaloneResources(address).make_run_dir()
            stack.callback(self.run_dir.close)
            self.base = self.run_dir.path / ENGINES
            self.base.mkdir(mode=0o700)
            self.store = HostStore() if whole_store else None
            if self.store:
                stack.callback(self.store.close)
            self._stack = stack.pop_all()

    def fail_waiting(self) -> None:
        """Fail all members that wait for the leader."""
        for promise in (self.surveyed, self.allocated):
            if not promise.done():
                promise.set_exception(EngineError("the first engine of the group did not start", "group"))

    def open_attachments(self, run_dirs: list[str]) -> None:
        """Make the folder of attachments and link it into every engine's run directory."""
        folder = self.run_dir.path / FOLDER
        folder.mkdir(mode=0o700)
        for run_dir in run_dirs:
            Path(run_dir, FOLDER).symlink_to(folder)

    def close(self) -> None:
        """Close the host store and remove the run directory."""
        self._stack.close()


class GroupLeader(StandaloneResources):
    """Resources of the engine that surveys and fills the store for all."""

    def __init__(self, shared: GroupResources) -> None:
        self._shared, self.base, self.store = shared, shared.base, shared.store

    def survey(self, make: Callable[[], Survey]) -> Survey:
        """Make the survey and share it."""
        survey = make()
        self._shared.surveyed.set_result(survey)
        return survey

    def memory_lock(self) -> AbstractContextManager[object]:
        """Return the lock of the group."""
        return self._shared.memory_lock

    def on_allocated(self) -> None:
        """Let the members go on."""
        self._shared.allocated.set_result(None)


class GroupMember(GroupLeader):
    """Resources of every other engine of the group."""

    fills = False

    def survey(self, make: Callable[[], Survey]) -> Survey:
        """Wait for the leader's survey and allocation. Raises EngineError if the leader does not start."""
        survey = self._shared.surveyed.result()
        self._shared.allocated.result()
        return survey

    def on_allocated(self) -> None:
        """Do nothing: no engine waits for a member."""

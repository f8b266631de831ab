"""Start an engine, or one for each of several devices, for a command, with progress on stderr."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from ...configs.schema import Config
from ...errors import ExpertFlowError
from ...ipc.messages import Progress, Snapshot
from ...ipc.stage.logs import LogSpec
from ...workers.checkpoint.resolve import local_folder
from ..client.snapshots import split_snapshot
from ..monitor.progress import ProgressView
from ..service.interrupts import interrupts_deferred, interrupts_once
from .group import EngineGroup
from .supervisor import Supervisor


class EngineHandle(Protocol):
    """Common interface of `Supervisor` and `EngineGroup`."""

    config: Config

    @property
    def address(self) -> str:
        """Return the address for clients and watchers."""
        ...

    @property
    def choice(self) -> str:
        """Return why expert memory was chosen as it was; empty if it was configured."""
        ...

    @property
    def failure(self) -> ExpertFlowError | None:
        """Return the cause if everything has ended by itself; else None."""
        ...

    def start(self) -> None:
        """Start and return when every stage is ready."""
        ...

    def begin_to_drain(self, deadline_s: float) -> None:
        """Accept nothing new and end once all open requests have, or at the deadline; do not wait for it."""
        ...

    def stop(self) -> None:
        """Stop gracefully."""
        ...

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for the end; return False if it has not come within `timeout_s`. Raises the cause of the end."""
        ...

    def snapshot(self) -> Snapshot:
        """Return the last statistics of every stage."""
        ...


@contextmanager
def running_engine(
    config: Config,
    address: str = "",
    on_progress: Callable[[Progress], None] = lambda progress: None,
    log: LogSpec | None = None,
) -> Iterator[EngineHandle]:
    """Yield a ready engine, at this address if one is given; stop it gracefully at the end.

    `log`: destination of what its processes log. `on_progress` is told of its start, as the terminal is. A Ctrl-C that
    comes while it stops does not interrupt that.
    """
    with interrupts_once(), ProgressView() as view:

        def show(progress: Progress) -> None:
            view(progress)
            on_progress(progress)

        cls = EngineGroup if len(config.devices) > 1 else Supervisor
        engine = cls(config, on_progress=show, address=address, log=log)
        if config.model:
            local_folder(config.model)  # raises: a wrong name is not worth a line
            show(Progress("engine", f"starting for {config.model}", 0, 1))
        engine.start()
    try:
        yield engine
    finally:
        with interrupts_deferred():
            engine.stop()


def engine_remarks(engine: EngineHandle) -> list[str]:
    """Return remarks about the checkpoint of a running engine: its limits, and reasons why it is slow."""
    first = next(iter(split_snapshot(engine.snapshot()).values()))
    return str(first.facts.get("compute", {}).get("remarks", "")).splitlines()

"""Starting an engine, or one for each of several devices, for a command, with progress on stderr."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ...configs.schema import Config
from ...ipc.messages import Progress
from ..monitor.progress import ProgressView
from .group import EngineGroup
from .supervisor import Supervisor


@contextmanager
def running_engine(config: Config) -> Iterator[Supervisor | EngineGroup]:
    """What is ready; it is stopped gracefully at the end, whatever happens inside."""
    with ProgressView() as view:
        kind = EngineGroup if len(config.devices) > 1 else Supervisor
        engine = kind(config, on_progress=view)
        if config.model:
            view(Progress("engine", f"starting for {config.model}", 0, 1))
        engine.start()
    try:
        yield engine
    finally:
        engine.stop()


def engine_remarks(engine: Supervisor | EngineGroup) -> list[str]:
    """What a user should hear of the checkpoint that a running engine has, and why it is slower than others."""
    one = next(iter(engine.engines.values())) if isinstance(engine, EngineGroup) else engine
    said = str(one.snapshot().facts.get("compute", {}).get("remarks", ""))
    return said.splitlines()

"""Starting an engine for a command, with progress on stderr."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ...configs.schema import Config
from ...ipc.messages import Progress
from ..progress import ProgressView
from ..supervisor import Supervisor


@contextmanager
def running_engine(config: Config) -> Iterator[Supervisor]:
    """An engine that is ready; it is stopped gracefully at the end, whatever happens inside."""
    with ProgressView() as view:
        engine = Supervisor(config, on_progress=view)
        if config.model:
            view(Progress("engine", f"starting for {config.model}", 0, 1))
        engine.start()
    try:
        yield engine
    finally:
        engine.stop()

"""ExpertFlow: run Mixture-of-Experts models that do not fit the memory they run in (arXiv 2410.17954)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .configs.schema import Config as Config
    from .runtime.client import Batch as Batch
    from .runtime.client import Client as Client
    from .runtime.client import Completion as Completion
    from .runtime.client import Event as Event
    from .runtime.client import ImagePrompt as ImagePrompt
    from .runtime.client import NotDoneInTime as NotDoneInTime
    from .runtime.client import Request as Request
    from .runtime.client.async_batch import AsyncBatch as AsyncBatch
    from .runtime.client.async_client import AsyncClient as AsyncClient
    from .runtime.engine.group import EngineGroup as EngineGroup
    from .runtime.engine.supervisor import Supervisor as Supervisor
    from .runtime.text.structured import Structured as Structured

__version__ = "0.1.0"
__all__ = [
    "AsyncBatch", "AsyncClient", "Batch", "Client", "Completion", "Config", "EngineGroup", "Event", "ImagePrompt",
    "NotDoneInTime", "Request", "Structured", "Supervisor", "__version__",
]  # fmt: skip

_HOMES = {
    "Config": ".configs.schema",
    "Supervisor": ".runtime.engine.supervisor",
    "EngineGroup": ".runtime.engine.group",
    "AsyncBatch": ".runtime.client.async_batch",
    "AsyncClient": ".runtime.client.async_client",
    "Batch": ".runtime.client",
    "Client": ".runtime.client",
    "Completion": ".runtime.client",
    "Event": ".runtime.client",
    "ImagePrompt": ".runtime.client",
    "NotDoneInTime": ".runtime.client",
    "Request": ".runtime.client",
    "Structured": ".runtime.text.structured",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that `import expertflow` stays cheap."""
    if name not in _HOMES:
        raise AttributeError(f"module 'expertflow' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name], __name__), name)

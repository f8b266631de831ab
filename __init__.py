"""ExpertFlow: run Mixture-of-Experts models that do not fit the memory they run in (arXiv 2410.17954)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .configs.schema import Config as Config
    from .runtime.client.client import Batch as Batch
    from .runtime.client.client import Client as Client
    from .runtime.client.client import Completion as Completion
    from .runtime.client.client import ImagePrompt as ImagePrompt
    from .runtime.engine.group import EngineGroup as EngineGroup
    from .runtime.engine.supervisor import Supervisor as Supervisor

__version__ = "0.1.0"
__all__ = ["Batch", "Client", "Completion", "Config", "EngineGroup", "ImagePrompt", "Supervisor", "__version__"]

_HOMES = {
    "Config": ".configs.schema",
    "Supervisor": ".runtime.engine.supervisor",
    "EngineGroup": ".runtime.engine.group",
    "Client": ".runtime.client.client",
    "Batch": ".runtime.client.client",
    "Completion": ".runtime.client.client",
    "ImagePrompt": ".runtime.client.client",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that `import expertflow` stays cheap."""
    if name not in _HOMES:
        raise AttributeError(f"module 'expertflow' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name], __name__), name)

"""ExpertFlow: run Mixture-of-Experts models that do not fit the memory they run in (arXiv 2410.17954)."""

from __future__ import annotations

from importlib import import_module

TYPE_CHECKING = False  # without importing typing: `__main__` handles Ctrl-C only after this module
if TYPE_CHECKING:
    from typing import Any

    from .configs.schema import Config as Config
    from .ipc.messages import HistogramCounts as HistogramCounts
    from .ipc.messages import HistoryPoint as HistoryPoint
    from .ipc.messages import Progress as Progress
    from .ipc.messages import Snapshot as Snapshot
    from .ipc.messages import StagePoint as StagePoint
    from .ipc.messages import StageStats as StageStats
    from .ipc.messages import StageTotals as StageTotals
    from .ipc.messages import Timings as Timings
    from .ipc.messages import TokenLogprob as TokenLogprob
    from .ipc.messages import Welcome as Welcome
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
    from .runtime.text.answers.parts import AnswerParser as AnswerParser
    from .runtime.text.answers.parts import AnswerParts as AnswerParts
    from .runtime.text.answers.parts import ToolCall as ToolCall
    from .runtime.text.structured import Grammar as Grammar
    from .runtime.text.structured import Structured as Structured

__version__ = "0.1.0"
__all__ = [
    "AnswerParser", "AnswerParts", "AsyncBatch", "AsyncClient", "Batch", "Client", "Completion", "Config",
    "EngineGroup", "Event", "Grammar", "HistogramCounts", "HistoryPoint", "ImagePrompt", "NotDoneInTime", "Progress",
    "Request", "Snapshot", "StagePoint", "StageStats", "StageTotals", "Structured", "Supervisor", "Timings",
    "TokenLogprob", "ToolCall", "Welcome", "__version__",
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
    **dict.fromkeys(("HistoryPoint", "Progress", "Snapshot", "StagePoint", "StageStats"), ".ipc.messages"),
    **dict.fromkeys(("HistogramCounts", "StageTotals", "Timings", "TokenLogprob", "Welcome"), ".ipc.messages"),
    **dict.fromkeys(("AnswerParser", "AnswerParts", "ToolCall"), ".runtime.text.answers.parts"),
    **dict.fromkeys(("Grammar", "Structured"), ".runtime.text.structured"),
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that `import expertflow` stays cheap."""
    if name not in _HOMES:
        raise AttributeError(f"module 'expertflow' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name], __name__), name)

"""All messages by receiver: one module a receiver, one closed union a direction. Ids and small arrays only, never
weights."""

from .activity import Activity, AskActivity, CacheHeat, OpenRequest, OpenRequests, StageSpans, Watched
from .base import (
    NEUTRAL,
    NO_CAUSE,
    NO_DETAILS,
    Cause,
    CauseKind,
    Details,
    ErrorFacts,
    GenerationSettings,
    Message,
    RequestRow,
    RoutedExperts,
    Sampling,
    TokenLogprob,
)
from .control import (
    AskSnapshot,
    AskSurvey,
    Drain,
    Failed,
    HistogramCounts,
    KillStage,
    Peer,
    PeerDied,
    Prepare,
    Progress,
    Published,
    Ready,
    Snapshot,
    StageStats,
    StageTotals,
    Surveyed,
)
from .history import AskHistory, History, HistoryPoint, StagePoint
from .operation import CloseIntake, DrainEngine, OrderEnded, ReloadEngine
from .spans import Span
from .to_client import Accepted, Finished, Refused, Timings, ToClient, Tokens, Welcome
from .to_compute import (
    ComputeFromLoader,
    ComputeFromScheduler,
    Copy,
    DropPrefix,
    DropUnit,
    Filled,
    HeldFromLoader,
    KeepPrefix,
    Recall,
    RunStep,
    Split,
)
from .to_loader import (
    CopiesDone,
    Hint,
    LoaderFromCompute,
    LoaderFromPredictor,
    Miss,
    Released,
    ResidentTable,
    StepPrediction,
    StepRouting,
)
from .to_predictor import PredictorFromLoader, PredictorFromScheduler, PredictRows, PredictStep
from .to_scheduler import (
    Cancel,
    FromClient,
    FromCompute,
    FromPredictor,
    Hello,
    RowDetails,
    RowPredictions,
    Stepped,
    StepSize,
    Submit,
)

__all__ = [
    "Accepted", "Activity", "AskActivity", "AskHistory", "AskSnapshot", "AskSurvey", "CacheHeat", "Cancel", "Cause",
    "CauseKind", "CloseIntake", "ComputeFromLoader", "ComputeFromScheduler", "CopiesDone", "Copy", "Details", "Drain",
    "DrainEngine", "DropPrefix", "DropUnit", "ErrorFacts", "Failed", "Filled", "Finished", "FromClient", "FromCompute",
    "FromPredictor", "GenerationSettings", "HeldFromLoader", "Hello", "Hint", "HistogramCounts", "History",
    "HistoryPoint", "KeepPrefix", "KillStage", "LoaderFromCompute", "LoaderFromPredictor", "Message", "Miss", "NEUTRAL",
    "NO_CAUSE", "NO_DETAILS", "OpenRequest", "OpenRequests", "OrderEnded", "Peer", "PeerDied", "PredictRows",
    "PredictStep", "PredictorFromLoader", "PredictorFromScheduler", "Prepare", "Progress", "Published", "Ready",
    "Recall", "Refused", "Released", "ReloadEngine", "RequestRow", "ResidentTable", "RoutedExperts", "RowDetails",
    "RowPredictions", "RunStep", "Sampling", "Snapshot", "Span", "Split", "StagePoint", "StageSpans", "StageStats",
    "StageTotals", "StepPrediction", "StepRouting", "StepSize", "Stepped", "Submit", "Surveyed", "Timings", "ToClient",
    "TokenLogprob", "Tokens", "Watched", "Welcome",
]  # fmt: skip

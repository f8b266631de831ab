"""All messages by receiver: one module a receiver, one closed union a direction. Ids and small arrays only, never
weights."""

from .base import ErrorFacts, Message, Row, Sampling
from .control import (
    AskSnapshot,
    AskSurvey,
    Drain,
    Failed,
    KillStage,
    Peer,
    Progress,
    Published,
    Ready,
    Snapshot,
    Span,
    StageStats,
    Surveyed,
)
from .to_client import Accepted, Finished, Refused, Timings, ToClient, Tokens, Welcome
from .to_compute import (
    ComputeFromLoader,
    ComputeFromScheduler,
    Copy,
    Filled,
    Forget,
    HeldFromLoader,
    Recall,
    RunStep,
    Split,
)
from .to_loader import Copied, Given, Hint, Holding, LoaderFromCompute, LoaderFromPredictor, Need, Plan, Used
from .to_predictor import Forecast, Foresee, PredictorFromLoader, PredictorFromScheduler
from .to_scheduler import Cancel, Foreseen, FromClient, FromCompute, FromPredictor, Hello, Stepped, StepSize, Submit

__all__ = [
    "Accepted", "AskSnapshot", "AskSurvey", "Cancel", "ComputeFromLoader", "ComputeFromScheduler", "Copied", "Copy",
    "Drain", "ErrorFacts", "Failed", "Filled", "Finished", "Forecast", "Foresee", "Foreseen", "Forget", "FromClient",
    "FromCompute", "FromPredictor", "Given", "HeldFromLoader", "Hello", "Hint", "Holding",
    "KillStage", "LoaderFromCompute", "LoaderFromPredictor", "Message", "Need", "Peer", "Plan", "PredictorFromLoader",
    "PredictorFromScheduler", "Progress", "Published", "Ready", "Recall", "Refused", "Row", "RunStep", "Sampling",
    "Snapshot", "Span", "Split", "StageStats", "StepSize", "Stepped", "Submit", "Surveyed", "Timings", "ToClient",
    "Tokens", "Used", "Welcome",
]  # fmt: skip

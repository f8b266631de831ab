"""Every error a user can meet: what was wrong, where, and what to do."""

from __future__ import annotations

PREDICATES = frozenset({
    "and", "are", "asks", "can", "cannot", "could", "did", "died", "does", "ended", "gave", "has", "have", "holds",
    "is", "must", "names", "need", "needs", "takes", "was", "were",
})  # fmt: skip
"""Words with which a `what` begins that is said of its `where`."""


class ExpertFlowError(Exception):
    """Base of all errors raised by ExpertFlow.

    `what` says what is wrong, `where` names the place (a file, an option, a request), `remedy` says what to do.
    """

    code = "error"

    def __init__(self, what: str, where: str = "", remedy: str = "") -> None:
        super().__init__(what, where, remedy)
        self.what, self.where, self.remedy = what, where, remedy

    @property
    def lacks_subject(self) -> bool:
        """Whether `what` is a sentence only behind `where`, as "is empty" is."""
        return self.what.partition(" ")[0] in PREDICATES

    @property
    def sentence(self) -> str:
        """What is wrong, with its subject."""
        return f"{self.where} {self.what}" if self.lacks_subject and self.where else self.what

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text}. {self.remedy}" if self.remedy else text


class UsageError(ExpertFlowError):
    """An option, a prompt or a file the user gave cannot be used."""

    code = "usage"


class CheckpointError(ExpertFlowError):
    """The model folder is broken or is not a model that ExpertFlow can run."""

    code = "checkpoint"


class BudgetError(ExpertFlowError):
    """Something does not fit the memory it was given; the text carries the numbers."""

    code = "budget"


class RequestError(ExpertFlowError):
    """One request was refused or failed; others are not disturbed."""

    code = "request"


class BusyError(RequestError):
    """The queue is full; the limit is in the text."""

    code = "busy"


class EngineError(ExpertFlowError):
    """The engine could not start, or stopped."""

    code = "engine"


def error_from_code(code: str, what: str, where: str, remedy: str) -> ExpertFlowError:
    """Rebuild a typed error that crossed a socket; an unknown code gives the base class."""
    kinds = (UsageError, CheckpointError, BudgetError, RequestError, BusyError, EngineError)
    by_code = {kind.code: kind for kind in kinds}
    return by_code.get(code, ExpertFlowError)(what, where, remedy)

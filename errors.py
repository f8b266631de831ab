"""Every error a user can meet: what was wrong, where, and what to do."""

from __future__ import annotations

PREDICATES = frozenset({
    "and", "are", "asks", "belongs", "can", "cannot", "could", "did", "died", "differs", "does", "ended", "gave",
    "has", "have", "holds", "is", "must", "names", "need", "needs", "ran", "takes", "was", "were",
})  # fmt: skip
"""First words of a `what` that needs its `where` as the subject."""


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
        """Return whether `what` needs `where` as its subject, as "is empty" does."""
        return self.what.partition(" ")[0] in PREDICATES

    @property
    def sentence(self) -> str:
        """Return `what` with its subject: "FILE is empty"."""
        return f"{self.where} {self.what}" if self.lacks_subject and self.where else self.what

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text}. {self.remedy}" if self.remedy else text


class UsageError(ExpertFlowError):
    """An option, a prompt or a file the user gave cannot be used."""

    code = "usage"


class CheckpointError(ExpertFlowError):
    """The model folder is broken, or holds no model that ExpertFlow can run."""

    code = "checkpoint"


class BudgetError(ExpertFlowError):
    """Something does not fit the memory it was given; the text states the numbers."""

    code = "budget"


class RequestError(ExpertFlowError):
    """One request was refused or failed; other requests continue."""

    code = "request"


class BusyError(RequestError):
    """The queue is full; the text states the limit."""

    code = "busy"


class EngineError(ExpertFlowError):
    """The engine could not start, or stopped."""

    code = "engine"


def error_from_code(code: str, what: str, where: str, remedy: str) -> ExpertFlowError:
    """Rebuild a typed error that crossed a socket; an unknown code gives the base class."""
    classes = (UsageError, CheckpointError, BudgetError, RequestError, BusyError, EngineError)
    by_code = {cls.code: cls for cls in classes}
    return by_code.get(code, ExpertFlowError)(what, where, remedy)

"""The base of every message: a frozen, tagged struct, a MessagePack map with the class name under `type`."""

from __future__ import annotations

from typing import Literal

import msgspec

from ...errors import ExpertFlowError, error_from_code

CauseKind = Literal["", "miss", "hint", "prediction", "policy"]
"""Why an expert moves: compute waits for it, compute's hint or the predictor's plan names it, or room is to be used."""


class Message(msgspec.Struct, frozen=True, tag=True):
    """Subclasses repeat `frozen=True`: type checkers ask for it."""


class Cause(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Name why an expert is filled, copied or recalled, and for which layer of which step (-1: for none).

    The same cause goes along from the loader's decision to the slot that compute waits for.
    """

    kind: CauseKind = ""
    step: int = -1
    layer: int = -1


NO_CAUSE = Cause()
"""Of messages that were recorded before causes were."""


class Sampling(msgspec.Struct, frozen=True):
    """How one request chooses tokens. `temperature` 0 is greedy; `top_k` 0 and `top_p` 1 do not restrict."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    first_token: int | None = None
    """The output begins with it, whatever the model says: for a translator, the target language."""


class RequestRow(msgspec.Struct, frozen=True):
    """One sequence handed to compute: its number, all its ids so far, how many of them were generated, its sampling,
    and the name of the file with its images (ipc/shared/attachments.py), if any."""

    number: int
    token_ids: list[int]
    generated: int
    sampling: Sampling
    attachment: str = ""


class ErrorFacts(msgspec.Struct, frozen=True):
    """A typed error on the wire."""

    code: str
    what: str
    where: str = ""
    remedy: str = ""

    @staticmethod
    def of(error: ExpertFlowError) -> ErrorFacts:
        """Return what is sent of an error."""
        return ErrorFacts(error.code, error.what, error.where, error.remedy)

    def to_error(self) -> ExpertFlowError:
        """Rebuild the typed error; an unknown code gives the base class."""
        return error_from_code(self.code, self.what, self.where, self.remedy)

"""Requests that the gateway itself refuses. Pure."""

from __future__ import annotations

from ....errors import BusyError, ExpertFlowError, RequestError
from ....ipc.messages import Submit


def refusal_of(submit: Submit, waiting: int, queue_limit: int) -> ExpertFlowError | None:
    """Return why a request is refused while so many wait; None: it is not."""
    if submit.attachment:
        return RequestError("has images, which a cluster does not carry", "prompt", "Send it to a single engine")
    if waiting >= queue_limit:
        return BusyError(f"{waiting} requests wait in the cluster", "queue", "Submit again later")
    return None

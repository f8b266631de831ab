"""One request of a client, from hand-in to its end, whichever engine and scheduler sees to it."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from ...errors import ExpertFlowError
from ...ipc.messages import Submit, Timings


@dataclass(slots=True, eq=False)
class ClientRequest:
    """One request of a batch, from hand-in to its end."""

    index: int
    submit: Submit
    news: dict[int, None]
    """Shared by the batch: indices with something new, in order of arrival."""
    wait_when_busy: bool = True
    tokens: list[int] = field(default_factory=list)
    deadline_ns: int | None = None
    """From hand-in; also for a request that is never sent."""
    under_way: bool = False
    cancelled: bool = False
    finish_reason: str | None = None
    timings: Timings | None = None
    error: ExpertFlowError | None = None

    @property
    def ended(self) -> bool:
        return self.finish_reason is not None or self.error is not None

    def tell(self) -> None:
        self.news[self.index] = None

    def to_send(self, now_ns: int) -> Submit:
        """Sent late or once more, the deadline has come nearer, and output that was delivered stays."""
        left_ms = None if self.deadline_ns is None else max(1, (self.deadline_ns - now_ns) // 1_000_000)
        return msgspec.structs.replace(self.submit, resume_ids=list(self.tokens), deadline_ms=left_ms)

    def end_here(self, reason: str) -> None:
        """Without the scheduler: it never ran, or the one that ran it is gone."""
        self.finish_reason = reason
        self.timings = Timings(queued_ns=0, first_token_ns=0, total_ns=0)
        self.tell()

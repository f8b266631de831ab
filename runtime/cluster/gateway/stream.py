"""One request on its way through replicas: what its client has of it, and how it goes on after a loss. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from ....errors import EngineError, ExpertFlowError
from ....ipc.messages import Finished, Submit, Timings, TokenLogprob, Tokens
from ..routing.rules import Job

Client = tuple[bytes, str]
"""Identity of a connection and the user that a request of it is for."""


@dataclass(slots=True, eq=False)
class Stream:
    """A request from `Submit` to its end, whichever replicas run it.

    Its client gets every token once: what a replica repeats is cut off, and a replica that goes on is told all tokens
    that the client has (`Submit.resume_ids`).
    """

    number: int
    identity: bytes
    submit: Submit
    accepted_ns: int
    job: Job
    prefix: str = ""
    learns: bool = False
    """Ask for the routing of this request, to learn from it."""
    priority: int = 0
    sent: tuple[str, int] = ("", 0)
    """Origin and attempt of the latest `Submit`."""
    delivered: list[int] = field(default_factory=list)
    """Output that the client has."""
    replica: str | None = None
    attempt: int = 0
    """Number of times that it was sent to a replica: part of its id there, so late answers of earlier ones fall out."""
    cancelled: bool = False
    losses: int = 0
    """Number of replicas that died with it since its last token."""
    passed_over: int = 0
    """Number of times that a request behind it started first."""
    started_ns: int | None = None
    first_token_ns: int | None = None

    @property
    def client(self) -> Client:
        """Return who takes turns with others."""
        return self.identity, self.submit.user

    @property
    def positions(self) -> int:
        """Return the positions that it reserves, prompt and longest output."""
        return len(self.submit.prompt_ids) + self.submit.max_new_tokens

    @property
    def id_at_replica(self) -> str:
        """Return its id in the current attempt; `prefix` keeps the ids of several gateways to one engine apart."""
        return f"{self.prefix}{self.number}-{self.attempt}"

    def deadline_ns(self) -> int | None:
        """Return when it is over (monotonic ns); None: never."""
        return None if self.submit.deadline_ms is None else self.accepted_ns + self.submit.deadline_ms * 1_000_000

    def place(self, replica: str, now_ns: int) -> Submit:
        """Send it to a replica; return the message, with the output so far and the time that is left."""
        self.replica, self.attempt = replica, self.attempt + 1
        self.started_ns = self.started_ns or now_ns
        deadline_ns = self.deadline_ns()
        details = self.submit.details
        return msgspec.structs.replace(
            self.submit,
            request_id=self.id_at_replica,
            resume_ids=list(self.delivered),
            deadline_ms=None if deadline_ns is None else max(1, (deadline_ns - now_ns) // 1_000_000),
            details=msgspec.structs.replace(details, routed_experts=details.routed_experts or self.learns),
        )

    def take_tokens(self, message: Tokens, now_ns: int) -> Tokens | None:
        """Take tokens of a replica; return what is new for the client, None if nothing is.

        Raises ExpertFlowError if the replica leaves tokens out.
        """
        fresh = self._fresh(message.token_ids, message.offset)
        if not fresh:
            return None
        self.first_token_ns = self.first_token_ns or now_ns
        offset, self.losses = len(self.delivered), 0
        self.delivered += fresh
        return Tokens(self.submit.request_id, offset, fresh, _last(message.logprobs, len(fresh)))

    def finish(self, message: Finished, now_ns: int) -> Finished:
        """Return the end for the client; `delivered` is the whole output then.

        Raises ExpertFlowError if the output does not begin with what the client has.
        """
        self._fresh(message.token_ids, 0)
        self.delivered = message.token_ids
        asked = self.submit.details.routed_experts
        return msgspec.structs.replace(
            message,
            request_id=self.submit.request_id,
            timings=self._timings(message.timings, now_ns),
            routed_experts=message.routed_experts if asked else None,
        )

    def end_here(self, reason: str, now_ns: int) -> Finished:
        """Return the end of a request that no replica has."""
        timings = self._timings(Timings(queued_ns=0, first_token_ns=0, total_ns=0), now_ns)
        return Finished(
            request_id=self.submit.request_id, token_ids=self.delivered, finish_reason=reason, timings=timings
        )

    def _fresh(self, token_ids: list[int], offset: int) -> list[int]:
        known = len(self.delivered) - offset
        if known < 0:
            raise _contradiction(f"left out {-known} tokens")
        if token_ids[:known] != self.delivered[offset : offset + len(token_ids)]:
            raise _contradiction("changed tokens that the client has")
        return token_ids[known:]

    def _timings(self, timings: Timings, now_ns: int) -> Timings:
        """Return times from acceptance at the gateway."""
        waited_ns = (self.started_ns or now_ns) - self.accepted_ns
        first_ns = 0 if self.first_token_ns is None else self.first_token_ns - self.accepted_ns
        recomputed = timings.recomputed + max(0, self.attempt - 1)
        return Timings(
            queued_ns=waited_ns + timings.queued_ns if self.attempt < 2 else waited_ns,
            first_token_ns=first_ns or timings.first_token_ns,
            total_ns=now_ns - self.accepted_ns,
            recomputed=recomputed,
        )


def _last(logprobs: list[TokenLogprob], count: int) -> list[TokenLogprob]:
    return logprobs[-count:] if count else []


def _contradiction(what: str) -> ExpertFlowError:
    return EngineError(f"a replica {what}", "gateway", "Do all replicas run the same model in the same version?")

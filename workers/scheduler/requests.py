"""Ledger of requests: which were accepted, which tokens were delivered, and how each ended (I4)."""

from __future__ import annotations

import hashlib
import heapq
from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

import msgspec

from ...ipc.messages import (
    NEUTRAL,
    Finished,
    GenerationSettings,
    OpenRequest,
    OpenRequests,
    Refused,
    RequestRow,
    Sampling,
    Submit,
    Timings,
)
from .limits import REMEMBERED_REQUESTS, REMEMBERED_TOKENS
from .request_details import RequestDetails, remembered_tokens

MAX_LISTED = 200
"""Requests that a watcher sees."""
WAITING, PREFILL, DECODE = "waiting", "prefill", "decode"
"""States of an open request."""
Client = tuple[bytes, str]
"""Identity of a connection and the user that a request of it is for."""


@dataclass(slots=True, eq=False)
class RequestState:
    """One accepted request.

    A `ClientRequest` arrives as `Submit` and becomes this state; `RequestRow` carries it to compute. `number` is also
    the number of its row in compute, and gives the order of arrival.
    """

    number: int
    request_id: str
    identity: bytes
    digest: bytes
    prompt_ids: list[int]
    sampling: Sampling
    stop_ids: frozenset[int]
    token_limit: int
    """Output tokens after which the request finishes by `length`."""
    positions: int
    """KV positions that its row fills at its end."""
    accepted_ns: int
    attachment: str = ""
    settings: GenerationSettings = NEUTRAL
    batch_invariant: bool = False
    """Its row shares units only with other such rows, which never share a kernel call (I1d)."""
    priority: int = 0
    user: str = ""
    """Whom its client sends it for."""
    origin: str = ""
    attempt: int = 0
    """Those of the latest `Submit`."""
    details: RequestDetails = field(default_factory=RequestDetails)
    whole: bool = False
    """Its output is whole, delivered by an earlier scheduler; its prompt runs for its details alone."""
    deadline_ns: int | None = None
    tokens: list[int] = field(default_factory=list)
    started_ns: int | None = None
    first_token_ns: int | None = None
    last_token_ns: int | None = None
    recomputed: int = 0
    cached_tokens: int = 0
    """Tokens of its prompt that were not computed at its start, since another row had computed them."""
    deaths: int = 0
    """Consecutive deaths of compute while it ran this request, without a token in between."""

    @property
    def client(self) -> Client:
        """Return who takes turns with others: a connection, or each user of one."""
        return self.identity, self.user

    @property
    def length(self) -> int:
        """Return the number of tokens so far that are computed, the prompt included."""
        return len(self.prompt_ids) + len(self.tokens) - self._uncomputed

    @property
    def may_share_prefix(self) -> bool:
        """Return whether it may begin with what another row computed: its ids alone say what it computes."""
        return not self.attachment and not self.details.left.of_prompt

    @property
    def prefill_length(self) -> int:
        """Return the positions that its prefill runs in chunks; a batch-invariant row decodes its output again."""
        return len(self.prompt_ids) if self.batch_invariant else self.length

    @property
    def last_token(self) -> int:
        """Return the newest token, of the prompt if there is no output yet."""
        return self.tokens[-1] if self.tokens else self.prompt_ids[-1]

    @property
    def _uncomputed(self) -> int:
        """Return how many tokens at the end are never computed: the last one of a whole output."""
        return int(self.whole and bool(self.tokens))

    def row(self, chunk: int = 0, cached: int = 0, blocks: Sequence[int] = ()) -> RequestRow:
        """Return the message with which compute prefills the request, also after it has begun.

        `chunk`: most positions of a step that prefills it alone; 0: all. Its first `cached` positions are in `blocks`.
        """
        ids, generated = (self.prompt_ids + self.tokens)[: self.length], len(self.tokens) - self._uncomputed
        return RequestRow(
            self.number,
            ids,
            generated,
            self.sampling,
            self.attachment,
            self.settings,
            self.details.left,
            chunk=chunk,
            cached=cached,
            blocks=list(blocks),
        )

    def timings(self, now_ns: int) -> Timings:
        """Return the times since acceptance, in nanoseconds; an event that never happened counts as now."""
        return Timings(
            queued_ns=(now_ns if self.started_ns is None else self.started_ns) - self.accepted_ns,
            first_token_ns=(now_ns if self.first_token_ns is None else self.first_token_ns) - self.accepted_ns,
            total_ns=now_ns - self.accepted_ns,
            recomputed=self.recomputed,
        )


@dataclass(frozen=True, slots=True)
class EndedRequest:
    """Memory of an ended request: enough to answer when it is submitted again."""

    digest: bytes
    end: Finished | Refused

    @property
    def token_count(self) -> int:
        """Return the memory that the end takes, in tokens."""
        if not isinstance(self.end, Finished):
            return 0
        routes = 0 if self.end.routed_experts is None else len(self.end.routed_experts.data)
        return len(self.end.token_ids) + remembered_tokens(self.end.logprobs, self.end.prompt_logprobs, routes)


def submit_digest(submit: Submit) -> bytes:
    """Return 16 bytes that identify the content of a request: the same id with another digest is another request.

    A client that reconnects says which tokens it has and how much time is left. Neither is part of the digest, and
    nor is by which attempt it came.
    """
    content = msgspec.structs.replace(submit, deadline_ms=None, resume_ids=[], origin="", attempt=0)
    return hashlib.blake2b(msgspec.msgpack.encode(content), digest_size=16).digest()


class RequestLedger:
    """Open requests by id and by client, and the latest ended ones."""

    def __init__(self, remembered: int = REMEMBERED_REQUESTS, remembered_tokens: int = REMEMBERED_TOKENS) -> None:
        self.open: dict[str, RequestState] = {}
        self._ended: OrderedDict[str, EndedRequest] = OrderedDict()
        self._by_client: dict[bytes, dict[str, RequestState]] = {}
        self._deadlines: list[tuple[int, str]] = []
        self._remembered, self._remembered_tokens, self._tokens = remembered, remembered_tokens, 0

    def add(self, request: RequestState) -> None:
        """Add an accepted request."""
        self.open[request.request_id] = request
        self._by_client.setdefault(request.identity, {})[request.request_id] = request
        if request.deadline_ns is not None:
            self._add_deadline(request.deadline_ns, request.request_id)

    def assign_client(self, request: RequestState, identity: bytes, submit: Submit) -> None:
        """Send all further answers of a request to the identity under which its client reconnected and submitted."""
        self._leave_client(request)
        request.identity = identity
        request.origin, request.attempt = submit.origin, submit.attempt
        self._by_client.setdefault(identity, {})[request.request_id] = request

    def requests_of(self, identity: bytes) -> list[RequestState]:
        """Return the open requests of a client."""
        return list(self._by_client.get(identity, {}).values())

    def ended(self, request_id: str) -> EndedRequest | None:
        """Return an ended request, None if the id is unknown or forgotten."""
        return self._ended.get(request_id)

    def end(self, request: RequestState, end: Finished | Refused) -> None:
        """Move a request to the ended ones, and forget the oldest of these beyond the limits."""
        self.drop(request)
        self._remember(request.request_id, EndedRequest(request.digest, end))

    def drop(self, request: RequestState) -> None:
        """Forget an open request, as if it had never been submitted."""
        del self.open[request.request_id]
        self._leave_client(request)

    def next_deadline_ns(self) -> int | None:
        """Return the next deadline of an open request, in monotonic ns; None: there is none."""
        self._skip_ended()
        return self._deadlines[0][0] if self._deadlines else None

    def overdue(self, now_ns: int) -> Iterator[RequestState]:
        """Yield open requests past their deadline; the caller must end each of them."""
        while (deadline_ns := self.next_deadline_ns()) is not None and deadline_ns <= now_ns:
            yield self.open[heapq.heappop(self._deadlines)[1]]

    def _remember(self, request_id: str, ended: EndedRequest) -> None:
        self._ended[request_id] = ended
        self._tokens += ended.token_count
        while len(self._ended) > self._remembered or self._tokens > self._remembered_tokens:
            self._tokens -= self._ended.popitem(last=False)[1].token_count

    def _leave_client(self, request: RequestState) -> None:
        requests = self._by_client[request.identity]
        del requests[request.request_id]
        if not requests:
            del self._by_client[request.identity]

    def _add_deadline(self, deadline_ns: int, request_id: str) -> None:
        if len(self._deadlines) > 1000 + 2 * len(self.open):  # mostly ended requests with far deadlines
            self._deadlines = [entry for entry in self._deadlines if entry[1] in self.open]
            heapq.heapify(self._deadlines)
        heapq.heappush(self._deadlines, (deadline_ns, request_id))

    def _skip_ended(self) -> None:
        while self._deadlines and self._deadlines[0][1] not in self.open:
            heapq.heappop(self._deadlines)


def list_open(requests: Collection[RequestState], now_ns: int) -> OpenRequests:
    """Return the first `MAX_LISTED` requests, those that run before those that wait, each in order of arrival."""
    first = heapq.nsmallest(MAX_LISTED, requests, key=lambda request: (request.started_ns is None, request.number))
    return OpenRequests(time_ns=now_ns, total=len(requests), requests=[_listed(request, now_ns) for request in first])


def _listed(request: RequestState, now_ns: int) -> OpenRequest:
    return OpenRequest(
        request_id=request.request_id,
        state=_state(request),
        prompt_tokens=len(request.prompt_ids),
        tokens=len(request.tokens),
        token_limit=request.token_limit,
        age_ns=now_ns - request.accepted_ns,
        priority=request.priority,
        user=request.user,
    )


def _state(request: RequestState) -> str:
    if request.started_ns is None:
        return WAITING
    return PREFILL if request.first_token_ns is None else DECODE

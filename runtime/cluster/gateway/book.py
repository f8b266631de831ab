"""The gateway's requests: open ones, those that wait, and the ends of the last ones. Pure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from itertools import islice

from ....errors import EngineError, ExpertFlowError
from ....ipc.messages import Finished, Refused
from ....ipc.messages.base import ErrorFacts
from ....workers.scheduler.waiting_queue import WaitingQueue
from .events import SendToClient
from .stream import Stream

MAX_REMEMBERED = 1024
"""Requests that have ended and whose end is sent again if they are submitted again."""
MAX_LOSSES = 8
"""Replicas that may die with a request without a token in between: the request may be what kills them."""


class StreamBook:
    """Requests by the ids that clients gave. Each leaves it once, with its end."""

    def __init__(self) -> None:
        self.open: dict[str, Stream] = {}
        self.waiting: WaitingQueue[Stream] = WaitingQueue()
        self._ended: OrderedDict[str, Finished | Refused] = OrderedDict()

    def add(self, stream: Stream) -> None:
        """Add a request that waits."""
        self.open[stream.submit.request_id] = stream
        self.waiting.join(stream)

    def find_end(self, request_id: str) -> Finished | Refused | None:
        """Return the end of a request that has ended not long ago."""
        return self._ended.get(request_id)

    def streams_of(self, identity: bytes) -> list[Stream]:
        """Return the open requests of a client."""
        return [stream for stream in self.open.values() if stream.identity == identity]

    def next_streams(self, most: int) -> list[Stream]:
        """Return the first waiting requests of one priority, at most `most`, in the order of their starts."""
        streams = list(islice(self.waiting, most))
        return [stream for stream in streams if stream.priority == streams[0].priority]

    def overdue(self, now_ns: int) -> list[Stream]:
        """Return waiting requests whose time is up."""
        return [stream for stream in self.waiting if (stream.deadline_ns() or now_ns) < now_ns]

    def put_back(self, streams: Iterable[Stream], now_ns: int) -> list[SendToClient]:
        """Let requests that have lost their replica wait ahead of those that have not started.

        Those that were cancelled, or were lost too often, end instead.
        """
        ends: list[SendToClient] = []
        staying: list[Stream] = []
        for stream in streams:
            stream.replica = None
            if stream.cancelled:
                ends += self.end(stream, stream.end_here("cancelled", now_ns))
            elif stream.losses >= MAX_LOSSES:
                ends += self.fail(stream, _gives_up())
            else:
                staying.append(stream)
        self.waiting.put_back(staying)
        return ends

    def end(self, stream: Stream, message: Finished | Refused) -> list[SendToClient]:
        """End a request; return the message for its client."""
        self.remove(stream)
        self._ended[message.request_id] = message
        if len(self._ended) > MAX_REMEMBERED:
            self._ended.popitem(last=False)
        return [SendToClient(stream.identity, message)]

    def fail(self, stream: Stream, error: ExpertFlowError) -> list[SendToClient]:
        """End a request with an error."""
        return self.end(stream, Refused(stream.submit.request_id, ErrorFacts.of(error)))

    def remove(self, stream: Stream) -> None:
        """Forget a request."""
        self.open.pop(stream.submit.request_id, None)
        self.waiting.leave(stream)


def _gives_up() -> EngineError:
    what = f"{MAX_LOSSES} replicas ended while they ran this request"
    return EngineError(what, "gateway", "The logs of the replicas say why; `expertflow cluster status` lists them")

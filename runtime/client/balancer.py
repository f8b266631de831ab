"""Distributes requests over several engines. Pure: no socket, no clock.

An engine gets about twice as many requests as it runs at the same time; the others wait here. A fast engine takes more
of a batch than a slow one, and none is idle while another has a backlog. A single engine gets everything at once.
"""

from __future__ import annotations

from ...errors import ExpertFlowError
from .request import ClientRequest, Deadlines, UnsentRequests
from .session import EngineSession


class RequestBalancer:
    """Requests of a client that wait for an engine, and the sessions with the live engines."""

    def __init__(self) -> None:
        self._sessions: list[EngineSession] = []
        self._waiting = UnsentRequests()
        self._deadlines = Deadlines()

    @property
    def open_count(self) -> int:
        """Return the number of requests that are not known to have ended."""
        return len(self._waiting) + sum(session.open_count + len(session.returned) for session in self._sessions)

    def add(self, session: EngineSession) -> None:
        """Add a session with an engine."""
        self._sessions.append(session)
        self._recount()

    def submit(self, request: ClientRequest, now_ns: int) -> None:
        """Queue a request, and assign it if an engine takes it."""
        self._waiting.append(request)
        self._deadlines.add(request, now_ns)
        self.assign(now_ns)

    def cancel(self, request: ClientRequest) -> None:
        """Cancel a request: the scheduler that has it ends it; without one it ends at once."""
        for session in self._sessions:
            if session.holds(request) or not request.under_way:
                session.cancel(request)

    def assign(self, now_ns: int) -> None:
        """Assign waiting requests in their order, each to the engine that has the fewest."""
        self._deadlines.end_overdue(now_ns)
        for session in self._sessions:
            self._waiting.put_back(session.returned)
            session.returned = []
        while self._waiting and (session := self._least_busy()):
            request = self._waiting.pop()
            if not request.ended:
                session.submit(request, now_ns)

    def next_due_ns(self) -> int | None:
        """Return when something is due without an answer (monotonic ns); None: not before an answer."""
        times = [session.next_due_ns() for session in self._sessions]
        if self._waiting:
            times.append(self._deadlines.next_ns)
        return min((time for time in times if time is not None), default=None)

    def lose(self, session: EngineSession, error: ExpertFlowError) -> None:
        """Remove the session of a lost engine: its open requests go to another, with the tokens delivered so far.

        Without another engine, all requests end with this error.
        """
        self._sessions.remove(session)
        self._recount()
        if self._sessions:
            self._waiting.put_back([*session.returned, *session.release()])
            return
        for request in [*session.returned, *self._waiting]:
            session.submit(request, 0)
        self._waiting.clear()
        session.fail_all(error)

    def _least_busy(self) -> EngineSession | None:
        """Return the engine with the fewest requests that takes another; None if none does."""
        if len(self._sessions) == 1:
            return self._sessions[0]
        free = [session for session in self._sessions if session.open_count < session.max_outstanding]
        return min(free, key=lambda session: session.open_count, default=None)

    def _recount(self) -> None:
        for session in self._sessions:
            session.one_of_several = len(self._sessions) > 1

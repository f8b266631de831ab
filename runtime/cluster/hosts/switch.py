"""The request router of the engines' deployment: follows tickets, and tells gateways which replicas there are."""

from __future__ import annotations

from typing import Any

from ray.serve._private.request_router.common import PendingRequest
from ray.serve._private.request_router.replica_wrapper import RunningReplica
from ray.serve.request_router import FIFOMixin, RequestRouter

from .ticket import Ticket, Watcher


class Switch(FIFOMixin, RequestRouter):
    """Sends a call to the replica that its ticket names; if that one is gone, to any, which refuses it."""

    def initialize_state(self, **kwargs: Any) -> None:
        """Begin without watchers."""
        self._watchers: list[Watcher] = []

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Return the replica of the ticket alone."""
        ticket = pending_request.args[0] if pending_request and pending_request.args else None
        if not isinstance(ticket, Ticket):
            return [candidate_replicas]
        if ticket.watcher is not None and ticket.watcher not in self._watchers:
            self._watchers.append(ticket.watcher)
            self._tell()
        named = [replica for replica in candidate_replicas if name_of(replica) == ticket.replica]
        return [named or candidate_replicas]

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Take the set of replicas, and tell the watchers."""
        super().update_replicas(replicas)
        self._tell()

    def _tell(self) -> None:
        names = frozenset(name_of(replica) for replica in self.curr_replicas.values())
        self._watchers = [watcher for watcher in self._watchers if watcher(names)]


def name_of(replica: RunningReplica) -> str:
    """Return the name of a replica: Serve's id of it without application and deployment."""
    return replica.replica_id.unique_id

"""The engine of one host, as a deployment of Ray Serve."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from ray import serve

from ....errors import EngineError, ExpertFlowError
from ....ipc.messages import Activity, Snapshot
from ...client.watching import Watcher
from ...engine.supervisor import Supervisor
from ..gateway.bridge import Bridge
from ..routing.fleet import ReplicaState, pack_held
from .private_port import keep_port_private
from .scaling import BUSY, QUEUE_AGE, STALLS
from .settings import read_settings
from .ticket import Ticket

PUBLISH_S = 1.0
SILENCE_S = 8.0
"""Time without a sign of a gateway after which its conversation ends, and with it the requests that it sent."""
Said = tuple[list[bytes], ReplicaState | None]
"""Frames of the engine, and the state of the replica if it is time for one."""


class EngineReplica:
    """One engine, with a host store of its own. Gateways hold one conversation each with it."""

    def __init__(self, settings: dict[str, Any]) -> None:
        """Start the engine. Raises ExpertFlowError, which Serve shows in the status of the deployment."""
        keep_port_private()
        self._name = serve.get_replica_context().replica_id.unique_id
        self._engine = Supervisor(read_settings(settings).config())
        self._engine.start()
        self._bridges: dict[str, Bridge] = {}
        self._heard_s: dict[str, float] = {}
        """Link of a gateway -> when it was last heard (monotonic)."""
        self._load: dict[str, float] = {}
        self._stall_share = 0.0

    def check_health(self) -> None:
        """Raise the error that ended the engine, so that Serve starts another replica."""
        if self._engine.failure is not None:
            raise self._engine.failure

    def name(self, ticket: Ticket) -> str:
        """Return the name of this replica."""
        return self._name

    async def converse(self, ticket: Ticket) -> AsyncIterator[Said]:
        """Yield what the engine says to a gateway, and the replica's state every second.

        Ends when the engine's scheduler was replaced. Raises EngineError if the ticket names another replica.
        """
        if ticket.replica != self._name:
            raise EngineError(f"is no longer there: {ticket.replica}", "replica", "Serve starts another one")
        bridge = self._bridges[ticket.link] = Bridge(self._engine.address)
        self._heard_s[ticket.link] = time.monotonic()
        states: asyncio.Queue[ReplicaState] = asyncio.Queue()
        publishing = asyncio.create_task(self._publish(ticket.link, states, bridge))
        try:
            yield [], None  # the gateway may send from now on
            async for frames in bridge.frames():
                yield frames, None if states.empty() else states.get_nowait()
        finally:
            publishing.cancel()
            if self._bridges.get(ticket.link) is bridge:
                del self._bridges[ticket.link]
            bridge.close()

    def send(self, ticket: Ticket, frames: list[bytes]) -> None:
        """Pass frames of a gateway on to the engine; dropped without a conversation, which the gateway notices."""
        bridge = self._bridges.get(ticket.link) if ticket.replica == self._name else None
        if bridge is not None:
            bridge.send(frames)

    def beat(self, ticket: Ticket, queue_age_s: float, busy_share: float) -> None:
        """Take a sign that a gateway is there, with its load: for autoscaling."""
        self._heard_s[ticket.link] = time.monotonic()
        self._load = {QUEUE_AGE: queue_age_s, BUSY: busy_share}

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Return the load, for Serve's controller."""
        return {**self._load, STALLS: self._stall_share}

    def end(self) -> None:
        """End the engine."""
        self._engine.stop()

    def __del__(self) -> None:
        self.end()

    async def _publish(self, link: str, states: asyncio.Queue[ReplicaState], bridge: Bridge) -> None:
        """Put the state into the queue once a second, and wake the conversation, as long as the gateway is heard."""
        loop, thread = asyncio.get_running_loop(), ThreadPoolExecutor(1, "expertflow-watch")
        watchers: list[Watcher] = []
        before, stalled_ns = ReplicaState(time_ns=time.monotonic_ns()), 0
        try:
            watchers.append(await loop.run_in_executor(thread, Watcher, self._engine.address))
            while time.monotonic() - self._heard_s[link] < SILENCE_S:
                activity, snapshot = await loop.run_in_executor(thread, _look, watchers[0])
                stalls_ns = _counter(snapshot, "compute", "stall_ns")
                before, stalled_ns = _state(activity, snapshot, before, stalls_ns - stalled_ns), stalls_ns
                self._stall_share = before.stall_share
                states.put_nowait(before)
                bridge.wake()
                await asyncio.sleep(PUBLISH_S)
        except ExpertFlowError as error:
            logging.getLogger(__name__).warning("the engine does not tell its state: %s", error)
        finally:
            bridge.close()
            for watcher in watchers:
                thread.submit(watcher.close)
            thread.shutdown(wait=False)


def _look(watcher: Watcher) -> tuple[Activity | None, Snapshot]:
    return next(iter(watcher.activity().values()), None), watcher.snapshot()


def _state(activity: Activity | None, snapshot: Snapshot, before: ReplicaState, stalled_ns: int) -> ReplicaState:
    now_ns = time.monotonic_ns()
    heat = activity.heat if activity is not None else None
    held = np.frombuffer(heat.residence, dtype=np.uint8) > 0 if heat is not None else np.zeros(0, dtype=bool)
    return ReplicaState(
        time_ns=now_ns,
        layers=heat.layers if heat is not None else 0,
        experts=heat.experts if heat is not None else 0,
        held=pack_held(held),
        hits=_counter(snapshot, "compute", "hits"),
        misses=_counter(snapshot, "compute", "misses"),
        loaded_bytes=_counter(snapshot, "loader", "bytes"),
        tokens=snapshot.stages["compute"].done if "compute" in snapshot.stages else 0,
        stall_share=min(1.0, stalled_ns / max(now_ns - before.time_ns, 1)),
    )


def _counter(snapshot: Snapshot, stage: str, name: str) -> int:
    stats = snapshot.stages.get(stage)
    return 0 if stats is None else int(stats.counters.get(name, 0))

"""The supervisor's side of its watchers: answers what they ask, and lets stages report while they do."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import msgspec

from ...ipc.messages import (
    AskActivity,
    AskHistory,
    AskSnapshot,
    CacheHeat,
    DrainEngine,
    KillStage,
    OpenRequests,
    Published,
    ReloadEngine,
    Watched,
)
from ...ipc.messages.control import FROM_WATCHER, FromWatcher
from ...ipc.transport.addresses import MONITOR, socket_address
from ...ipc.transport.router import Router
from ...ipc.transport.sockets import Context
from ..monitor.activity_board import ActivityBoard
from .orders import DrainOrder, EngineOrder, ReloadOrder
from .status_board import StatusBoard

MAX_UNREAD_ANSWERS = 100
"""Answers that a watcher may leave unread, of up to 1.5 MB; more are dropped."""


class Watchers:
    """The monitor socket. Owned by the engine's thread; `tell_stages` sends a message to every stage that is ready."""

    def __init__(
        self, context: Context, run_dir: str, board: StatusBoard, tell_stages: Callable[[Watched], None]
    ) -> None:
        address = socket_address(run_dir, MONITOR)
        self._router: Router[FromWatcher] = Router(context, address, FROM_WATCHER, MAX_UNREAD_ANSWERS)
        self._board, self._tell_stages = board, tell_stages
        self._activity = ActivityBoard()
        self.socket = self._router.socket

    @property
    def watched(self) -> Watched | None:
        """Return what a stage is told that has just become ready; None: nobody watches."""
        return Watched(on=True) if self._activity.is_watched else None

    def receive(self) -> list[EngineOrder]:
        """Answer the watchers; return their orders."""
        orders: list[EngineOrder] = []
        for identity, message in self._router.receive():
            match message:
                case AskSnapshot():
                    self._router.send(identity, self._board.snapshot())
                case AskHistory(since_ns):
                    self._router.send(identity, self._board.history(since_ns))
                case AskActivity(after):
                    self._answer(identity, after)
                case KillStage():
                    orders.append(message)
                case DrainEngine(deadline_s):
                    orders.append(DrainOrder(deadline_s, partial(self._router.send, identity)))
                case ReloadEngine(changes):
                    orders.append(ReloadOrder(changes, partial(self._router.send, identity)))
        self._tell(self._activity.check(time.monotonic_ns()))
        return orders

    def on_message(self, message: Published | CacheHeat | OpenRequests) -> None:
        """Keep what watchers see of a stage."""
        if isinstance(message, Published):
            self._activity.on_spans(message.stats.stage, message.spans)
        else:
            self._activity.on_report(message)

    def on_died(self, stage: str) -> None:
        """Forget what a dead stage reported."""
        self._activity.on_died(stage)

    def _answer(self, identity: bytes, after: int) -> None:
        activity, change = self._activity.ask(after, time.monotonic_ns())
        self._router.send(identity, msgspec.structs.replace(activity, device=self._board.device))
        self._tell(change)

    def _tell(self, change: Watched | None) -> None:
        if change is not None:
            self._tell_stages(change)
